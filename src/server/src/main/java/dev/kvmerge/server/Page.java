package dev.kvmerge.server;

import io.helidon.http.HeaderNames;
import io.helidon.webserver.http.ServerResponse;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.Map;
import java.util.regex.Pattern;

/** The page at /, and the files that it is made of. */
final class Page {
    private static final Pattern NAME = Pattern.compile("[A-Za-z0-9_-][A-Za-z0-9_.-]*\\.([a-z0-9]+)");
    private static final Map<String, String> TYPES = Map.of(
            "html", "text/html; charset=utf-8",
            "css", "text/css; charset=utf-8",
            "js", "text/javascript; charset=utf-8",
            "svg", "image/svg+xml",
            "png", "image/png",
            "ico", "image/x-icon");

    private Page() {}

    /** Sends a file of the page; false where there is none of that name. */
    static boolean send(String path, ServerResponse response) {
        String name = path.equals("/") ? "index.html" : path.substring(1);
        var matcher = NAME.matcher(name);
        String type = matcher.matches() ? TYPES.get(matcher.group(1)) : null;
        if (type == null) {
            return false;
        }
        byte[] file;
        try (InputStream in = Page.class.getResourceAsStream("page/" + name)) {
            if (in == null) {
                return false;
            }
            file = in.readAllBytes();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        response.header(
                HeaderNames.create("Content-Security-Policy"),
                "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
        response.header(HeaderNames.create("X-Content-Type-Options"), "nosniff");
        response.header(HeaderNames.CACHE_CONTROL, "no-cache");
        Replies.bytes(response, 200, type, file);
        return true;
    }
}
