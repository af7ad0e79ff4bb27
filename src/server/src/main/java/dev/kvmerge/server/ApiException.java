package dev.kvmerge.server;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** A request that cannot be answered, as OpenAI's error object says it. */
final class ApiException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private static final String GARBLED = "bad_request";
    private static final Pattern OPTION = Pattern.compile(" \\(--([a-z-]+)\\)");

    private final int status;
    private final String type;
    private final String param;
    private final String code;

    private ApiException(int status, String type, String message, String param, String code) {
        super(message, null, false, false);
        this.status = status;
        this.type = type;
        this.param = param;
        this.code = code;
    }

    /** 400: a field, or null for the whole request, is not what it must be. */
    static ApiException invalid(String param, String code, String message) {
        return new ApiException(400, "invalid_request_error", message, param, code);
    }

    /** 400: what the engine refuses; it names options of the command line, and a request has fields of those names. */
    static ApiException refused(KvmergeException.Usage e) {
        Matcher option = OPTION.matcher(e.getMessage());
        String field = option.find() ? option.group(1).replace('-', '_') : null;
        return invalid(
                field != null && Requests.BOTH.contains(field) ? field : null,
                "invalid_value",
                OPTION.matcher(e.getMessage()).replaceAll(""));
    }

    /** 400: what would change the answer and cannot be done. */
    static ApiException unsupported(String param, String message) {
        return invalid(param, "unsupported_parameter", message);
    }

    /** 401. */
    static ApiException unauthorized(boolean given) {
        String message = given
                ? "Incorrect API key provided."
                : "You didn't provide an API key: send it as 'Authorization: Bearer KEY'.";
        return new ApiException(401, "invalid_request_error", message, null, "invalid_api_key");
    }

    /** 403: a page of another origin, or a name that is none of this server's. */
    static ApiException forbidden(String code, String message) {
        return new ApiException(403, "permission_error", message, null, code);
    }

    /** 404. */
    static ApiException notFound(String message) {
        return new ApiException(404, "invalid_request_error", message, null, "not_found");
    }

    /** 405. */
    static ApiException method(String method, String path, String allowed) {
        return new ApiException(
                405,
                "invalid_request_error",
                path + " takes " + allowed + ", not " + method + ".",
                null,
                "method_not_allowed");
    }

    /** 408: the client takes too long to say what it asks. */
    static ApiException slow(String message) {
        return new ApiException(408, "timeout_error", message, null, "request_timeout");
    }

    /** 400: nobody knows where the next request of the connection begins. */
    static ApiException garbled(String message) {
        return invalid(null, GARBLED, message);
    }

    /** Whether the rest of the connection is not worth waiting for. */
    boolean endsConnection() {
        return status == 408 || GARBLED.equals(code);
    }

    /** 409: a slot that is asked about is at work. */
    static ApiException conflict(String message) {
        return new ApiException(409, "invalid_request_error", message, null, "slot_busy");
    }

    /** 413. */
    static ApiException tooLarge(long most) {
        return new ApiException(
                413,
                "invalid_request_error",
                "The request's body is longer than " + most + " bytes, the most that this server takes.",
                null,
                "request_too_large");
    }

    /** 500: nothing of what went wrong is told but that it did. */
    static ApiException internal(String message) {
        return new ApiException(500, "server_error", message, null, "internal_error");
    }

    /** 501: not without an option of the command line. */
    static ApiException notEnabled(String message) {
        return new ApiException(501, "not_supported_error", message, null, "not_enabled");
    }

    /** 503: not now; the caller may try again. */
    static ApiException unavailable(String code, String message) {
        return new ApiException(503, "unavailable_error", message, null, code);
    }

    /** 504: the time was over before the answer was whole. */
    static ApiException timeout(String message) {
        return new ApiException(504, "timeout_error", message, null, "timeout");
    }

    int status() {
        return status;
    }

    String code() {
        return code;
    }

    /** {"error": {"message", "type", "param", "code"}}. */
    ObjectNode body() {
        ObjectNode body = Json.object();
        ObjectNode error = body.putObject("error");
        error.put("message", getMessage());
        error.put("type", type);
        error.put("param", param);
        error.put("code", code);
        return body;
    }
}
