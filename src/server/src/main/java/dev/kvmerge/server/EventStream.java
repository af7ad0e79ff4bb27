package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import io.helidon.http.HeaderNames;
import io.helidon.webserver.http.ServerResponse;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/** Server-sent events, each of them JSON, the last [DONE]. Begins with the first event. */
final class EventStream {
    private final ServerResponse response;
    private OutputStream out;

    EventStream(ServerResponse response) {
        this.response = response;
    }

    /** Whether the client has been told that all is well: what goes wrong from now on is an event. */
    boolean begun() {
        return out != null;
    }

    void send(JsonNode event) {
        write(Json.bytes(event));
    }

    /** Ends the stream. */
    void done() {
        write("[DONE]".getBytes(StandardCharsets.UTF_8));
        close();
    }

    /** Ends it with an error, and without [DONE]. */
    void fail(ApiException error) {
        write(Json.bytes(error.body()));
        close();
    }

    private void write(byte[] data) {
        try {
            if (out == null) {
                response.header(HeaderNames.CONTENT_TYPE, "text/event-stream; charset=utf-8");
                response.header(HeaderNames.CACHE_CONTROL, "no-cache");
                out = response.outputStream();
            }
            out.write("data: ".getBytes(StandardCharsets.UTF_8));
            out.write(data);
            out.write("\n\n".getBytes(StandardCharsets.UTF_8));
            out.flush();
        } catch (IOException | UncheckedIOException e) {
            throw new Slots.GoneException();
        }
    }

    private void close() {
        try {
            out.close();
        } catch (IOException | UncheckedIOException e) {
            throw new Slots.GoneException();
        }
    }
}
