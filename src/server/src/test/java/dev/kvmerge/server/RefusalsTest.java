package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.ByteArrayOutputStream;
import java.net.Socket;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What cannot be answered is refused with an error object: bodies, paths, keys, and what is too much. */
@Tag("fast")
class RefusalsTest extends Refusing {
    @ParameterizedTest
    @ValueSource(
            strings = {
                "",
                " ",
                "{",
                "[]",
                "3",
                "null",
                "\"x\"",
                "{\"a\":1}}",
                "{\"stream\":true,\"stream\":false}",
                "{'a':1}",
                "{\"messages\":[}",
                "{\"a\":NaN}",
                "{\"a\":01}"
            })
    void whatIsNoJsonObjectIsRefused(String body) throws Exception {
        for (String path : List.of(CHAT, "/v1/completions", "/tokenize", "/detokenize")) {
            String message = error(client.post(path, body), 400).get("message").asText();
            assertFalse(message.contains("`"), message + " speaks of Jackson");
        }
        assertEquals(
                "invalid_json", error(client.post(CHAT, "{"), 400).get("code").asText());
    }

    @Test
    void deepJsonIsRefused() throws Exception {
        String deep = "{\"metadata\":" + "[".repeat(100_000) + "]".repeat(100_000) + "," + HELLO + "}";
        String message = error(client.post(CHAT, deep), 400).get("message").asText();
        assertTrue(message.contains("(100)") && !message.contains("`"), message);
    }

    @Test
    void textThatIsNotUtf8IsRefused() throws Exception {
        ByteArrayOutputStream request = new ByteArrayOutputStream();
        byte[] body = "{\"prompt\":\"\u00e9\"}".getBytes(StandardCharsets.ISO_8859_1);
        request.writeBytes(("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
                        + body.length + "\r\n\r\n")
                .getBytes(StandardCharsets.US_ASCII));
        request.writeBytes(body);
        String answer = raw(request.toByteArray());
        assertTrue(answer.startsWith("HTTP/1.1 400") && answer.contains("is not UTF-8"), answer);
    }

    private String raw(byte[] request) throws Exception {
        try (Socket socket = new Socket("127.0.0.1", server.port())) {
            socket.getOutputStream().write(request);
            return new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    @Test
    void whatIsNoHttpIsRefusedInJson() throws Exception {
        String answer = raw("GET /a b c HTTP/9.9\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
        assertTrue(answer.startsWith("HTTP/1.1 4") && answer.contains("{\"error\":{\"message\""), answer);
    }

    @Test
    void tooManyMessagesAndTooLongPromptsAreRefused() throws Exception {
        String one = "{\"role\":\"user\",\"content\":\"x\"}";
        String many = String.join(",", java.util.Collections.nCopies(21, one));
        assertEquals(
                "messages",
                error(client.post(CHAT, "{\"messages\":[" + many + "]}"), 400)
                        .get("param")
                        .asText());
        String longText = "{\"prompt\":\"" + "x".repeat(4096) + "\"}";
        JsonNode error = error(client.post("/v1/completions", longText), 400);
        assertEquals("context_length_exceeded", error.get("code").asText());
        assertTrue(error.get("message").asText().contains("4096 tokens"), error.toString());
        client.post(200, "/v1/completions", "{\"prompt\":\"" + "x".repeat(4095) + "\"}");
    }

    @Test
    void aBodyThatIsTooLongIsRefused() throws Exception {
        restart(TestOptions.slots(1).body(1000));
        String body = "{" + HELLO + ",\"user\":\"" + "x".repeat(1000) + "\"}";
        assertEquals(
                "request_too_large",
                error(client.post(CHAT, body), 413).get("code").asText());
        String chunked = raw(("POST " + CHAT + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                        + "Transfer-Encoding: chunked\r\n\r\n" + Integer.toHexString(body.length()) + "\r\n" + body
                        + "\r\n0\r\n\r\n")
                .getBytes(StandardCharsets.US_ASCII));
        assertTrue(chunked.startsWith("HTTP/1.1 413"), chunked);
        assertEquals(200, client.post(CHAT, "{" + HELLO + "}").statusCode());
    }

    @Test
    void slotsThatAreNotThereOrCannotBeReadAreRefused() throws Exception {
        error(client.get("/slots/1/cells"), 404);
        error(client.post("/slots/7?action=erase", ""), 404);
        error(client.get("/slots/99999999999/cells"), 404);
        for (String query : List.of("layer=2&head=0", "layer=0&head=3", "layer=0", "head=0", "layer=x&head=0")) {
            error(client.get("/slots/0/cells?" + query), 400);
        }
        error(client.post("/slots/0?action=restore", "{\"filename\":\"none\"}"), 404);
        client.post(200, CHAT, "{" + HELLO + "}");
        int read = fake.talks.getFirst().tokens().length;
        Files.writeString(folder.resolve("foreign"), "foreign");
        JsonNode error = error(client.post("/slots/0?action=restore", "{\"filename\":\"foreign\"}"), 400);
        assertTrue(error.get("message").asText().contains("another model"));
        assertEquals(read, fake.talks.getFirst().tokens().length, "the slot keeps what it has");
    }

    @Test
    void whatIsNotEnabledSaysSo() throws Exception {
        restart(TestOptions.slots(1).hidden());
        for (String path : List.of("/slots", "/metrics", "/slots/0/cells")) {
            JsonNode error = error(client.get(path), 501);
            assertTrue(error.get("message").asText().contains("Start it with --"), error.toString());
        }
        error(client.post("/slots/0?action=save", "{\"filename\":\"a\"}"), 501);
    }

    @Test
    void unknownPathsAndWrongMethodsAreRefused() throws Exception {
        for (String path :
                List.of("/v1/embeddings", "/nothing", "/v1/../etc", "/page/x.js", "/..%2f..%2fx.js", "/a.js")) {
            error(client.get(path), 404);
        }
        error(client.get(CHAT), 405);
        error(client.post("/v1/models", "{}"), 405);
        error(client.send("DELETE", "/health", null), 405);
        error(client.get("/slots/0?action=erase"), 405);
    }

    @Test
    void aGrammarThatCannotBeIsRefusedAlsoForAStream() throws Exception {
        for (String stream : List.of("", ",\"stream\":true")) {
            JsonNode error = error(client.post(CHAT, "{" + HELLO + ",\"grammar\":\"wrong\"" + stream + "}"), 400);
            assertEquals("grammar", error.get("param").asText());
            assertEquals("the grammar cannot be parsed", error.get("message").asText());
        }
    }

    @Test
    void whatNobodyForesawIsToldWithoutItsSecrets() throws Exception {
        fake.breaks = true;
        for (String stream : List.of("", ",\"stream\":true")) {
            HttpResponse<String> response = client.post(CHAT, "{" + HELLO + stream + "}");
            assertEquals("server_error", error(response, 500).get("type").asText());
            assertFalse(response.body().contains("secret"), response.body());
        }
        fake.breaks = false;
        client.post(200, CHAT, "{" + HELLO + "}");
    }

    @Test
    void withoutAKeyNothingButHealthIsTold() throws Exception {
        restart(TestOptions.slots(1).keys("first", "sécond"));
        assertEquals(200, client.get("/health").statusCode());
        for (String path : List.of("/v1/models", "/props", "/slots", "/metrics", "/slots/0/cells", "/nothing")) {
            assertEquals(
                    "invalid_api_key", error(client.get(path), 401).get("code").asText(), path);
        }
        for (String key : List.of("Bearer firs", "Bearer firstt", "Bearer ", "first", "Basic first")) {
            error(client.post(CHAT, "{" + HELLO + "}", "Authorization", key), 401);
        }
        for (String key : List.of("Bearer first", "bearer first")) {
            assertEquals(
                    200,
                    client.post(CHAT, "{" + HELLO + "}", "Authorization", key).statusCode());
        }
        assertEquals(200, client.get("/props", "X-Api-Key", "first").statusCode());
        assertEquals(200, client.send("OPTIONS", CHAT, null).statusCode());
    }

    private static String properties(int n, String required) {
        StringBuilder all = new StringBuilder("{\"type\":\"object\"" + required + ",\"properties\":{");
        for (int i = 0; i < n; i++) {
            all.append(i == 0 ? "" : ",").append("\"p").append(i).append("\":{\"type\":\"null\"}");
        }
        return all.append("}}").toString();
    }

    @Test
    @Tag("slow")
    void aSchemaOfTooMuchIsRefusedByName() throws Exception {
        restart(TestOptions.slots(1).body(32 << 20));
        StringBuilder chain = new StringBuilder("{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
        for (int i = 0; i < 20_000; i++) {
            chain.append("\"d" + i + "\":{\"$ref\":\"#/$defs/d" + (i + 1) + "\"},");
        }
        chain.append("\"d20000\":{}}}");
        String half = properties(300, "");
        String both = "{\"type\":\"array\",\"items\":{\"anyOf\":[" + (half + ",").repeat(9) + half + "]}}";
        String words = "{\"type\":\"array\",\"items\":{\"enum\":[" + "\"word\",".repeat(9999) + "1]}}";
        for (String schema : List.of(
                properties(20_000, ""),
                properties(500_000, ""),
                properties(500_000, ",\"required\":[\"p0\"]"),
                properties(900, ""),
                both,
                words,
                chain.toString())) {
            JsonNode error = error(client.post(CHAT, "{" + HELLO + ",\"json_schema\":" + schema + "}"), 400);
            assertEquals("json_schema", error.get("param").asText());
            assertTrue(error.get("message").asText().contains("more than "), error.toString());
        }
        client.post(200, CHAT, "{" + HELLO + ",\"json_schema\":" + properties(300, "") + "}");
    }

    /** The library refuses what goes together with nothing, and text that it cannot read: the request's fault. */
    @Test
    void whatTheEngineRefusesWhileARequestIsReadIsTold() throws Exception {
        String both = "{\"prompt\":\"a\",\"ignore_eos\":true,\"grammar\":\"root ::= \\\"a\\\"\"}";
        assertTrue(error(client.post("/v1/completions", both), 400)
                .get("message")
                .asText()
                .contains("grammar"));
        for (String[] one : new String[][] {{"/tokenize", "content"}, {"/v1/completions", "prompt"}}) {
            String body = "{\"" + one[1] + "\":\"" + FakeInference.WITHOUT_TOKEN + "\"}";
            String message =
                    error(client.post(one[0], body), 400).get("message").asText();
            assertTrue(message.contains("no token"), message);
        }
    }
}
