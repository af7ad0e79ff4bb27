package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.io.TempDir;

/** A server whose refusals are looked at: OpenAI's error object, which names the field; never a stack trace. */
abstract class Refusing {
    static final String CHAT = "/v1/chat/completions";
    static final String HELLO = "\"messages\":[{\"role\":\"user\",\"content\":\"say:hi\"}]";

    @TempDir
    Path folder;

    FakeInference fake;
    KvmergeServer server;
    Client client;

    @BeforeEach
    void start() {
        start(TestOptions.slots(1).files(folder));
    }

    void start(TestOptions options) {
        fake = new FakeInference();
        server = KvmergeServer.start(fake, options.build());
        client = new Client(server);
    }

    void restart(TestOptions options) {
        stop();
        start(options);
    }

    @AfterEach
    void stop() {
        client.close();
        server.close();
    }

    /** The error object, which has these four and nothing else. */
    static JsonNode error(HttpResponse<String> response, int status) throws Exception {
        assertEquals(status, response.statusCode(), response.body());
        assertEquals(
                "application/json; charset=utf-8",
                response.headers().firstValue("Content-Type").orElse(""));
        JsonNode body = Client.JSON.readTree(response.body());
        assertEquals(1, body.size());
        JsonNode error = body.get("error");
        assertEquals(4, error.size(), response.body());
        assertTrue(error.get("message").asText().length() > 10, response.body());
        assertTrue(error.get("type").isTextual() && error.get("code").isTextual() && error.has("param"));
        assertFalse(response.body().contains("Exception") || response.body().contains("\\tat "), response.body());
        return error;
    }
}
