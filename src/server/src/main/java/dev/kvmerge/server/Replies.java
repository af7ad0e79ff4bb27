package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import io.helidon.http.HeaderNames;
import io.helidon.http.Status;
import io.helidon.webserver.http.ServerResponse;
import java.nio.charset.StandardCharsets;

/** Whole responses. */
final class Replies {
    private Replies() {}

    static void json(ServerResponse response, JsonNode body) {
        json(response, 200, Json.bytes(body));
    }

    static void json(ServerResponse response, int status, byte[] body) {
        bytes(response, status, "application/json; charset=utf-8", body);
    }

    static void text(ServerResponse response, String type, String text) {
        bytes(response, 200, type, text.getBytes(StandardCharsets.UTF_8));
    }

    static void bytes(ServerResponse response, int status, String type, byte[] body) {
        response.status(Status.create(status));
        response.header(HeaderNames.CONTENT_TYPE, type);
        response.send(body);
    }

    static void error(ServerResponse response, ApiException e) {
        if (e.status() == 503) {
            response.header(HeaderNames.create("Retry-After"), "1");
        }
        if (e.status() == 401) {
            response.header(HeaderNames.create("WWW-Authenticate"), "Bearer");
        }
        json(response, e.status(), Json.bytes(e.body()));
    }
}
