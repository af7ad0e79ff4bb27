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
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What cannot be answered is refused with OpenAI's error object, which names the field; never a stack trace. */
@Tag("fast")
class RefusalsTest {
    private static final String CHAT = "/v1/chat/completions";
    private static final String HELLO = "\"messages\":[{\"role\":\"user\",\"content\":\"say:hi\"}]";

    @TempDir
    Path folder;

    private FakeInference fake;
    private KvmergeServer server;
    private Client client;

    @BeforeEach
    void start() {
        start(TestOptions.slots(1).files(folder));
    }

    private void start(TestOptions options) {
        fake = new FakeInference();
        server = KvmergeServer.start(fake, options.build());
        client = new Client(server);
    }

    private void restart(TestOptions options) {
        stop();
        start(options);
    }

    @AfterEach
    void stop() {
        client.close();
        server.close();
    }

    /** The error object, which has these four and nothing else. */
    private static JsonNode error(HttpResponse<String> response, int status) throws Exception {
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
            error(client.post(path, body), 400);
        }
        assertEquals(
                "invalid_json", error(client.post(CHAT, "{"), 400).get("code").asText());
    }

    @Test
    void deepJsonIsRefused() throws Exception {
        String deep = "{\"metadata\":" + "[".repeat(100_000) + "]".repeat(100_000) + "," + HELLO + "}";
        error(client.post(CHAT, deep), 400);
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

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "temperature | \"hot\" | invalid_type",
                "temperature | -0.1 | invalid_value",
                "temperature | true | invalid_type",
                "top_p | 1.5 | invalid_value",
                "min_p | [] | invalid_type",
                "top_k | 1.5 | invalid_type",
                "top_k | -1 | invalid_value",
                "seed | 99999999999999999999999999 | invalid_value",
                "max_tokens | \"5\" | invalid_type",
                "max_tokens | -5 | invalid_value",
                "max_completion_tokens | 1e99 | invalid_value",
                "stream | 1 | invalid_type",
                "stream | \"true\" | invalid_type",
                "stop | 3 | invalid_type",
                "stop | [\"\"] | invalid_value",
                "stop | [1] | invalid_type",
                "logprobs | 5 | invalid_type",
                "top_logprobs | 2 | invalid_value",
                "top_logprobs | 21 | invalid_value",
                "presence_penalty | 3 | invalid_value",
                "logit_bias | 1 | invalid_type",
                "logit_bias | {\"x\":1} | invalid_value",
                "logit_bias | {\"999\":1} | invalid_value",
                "logit_bias | {\"9\":101} | invalid_value",
                "logit_bias | {\"9\":\"a\"} | invalid_type",
                "stream_options | {\"include_usage\":true} | invalid_value",
                "id_slot | 1 | invalid_value",
                "model | 4 | invalid_type",
                "n | 2 | unsupported_parameter",
                "tools | [{\"type\":\"function\"}] | unsupported_parameter",
                "tool_choice | \"required\" | unsupported_parameter",
                "functions | [{}] | unsupported_parameter",
                "modalities | [\"text\",\"audio\"] | unsupported_parameter",
                "audio | {} | unsupported_parameter",
                "reasoning_effort | \"high\" | unsupported_parameter",
                "web_search_options | {} | unsupported_parameter",
                "mirostat | 2 | unsupported_parameter",
                "samplers | [\"top_k\"] | unsupported_parameter",
                "chat_template_kwargs | {\"a\":1} | unsupported_parameter",
                "temprature | 1 | unknown_parameter",
                "messages2 | [] | unknown_parameter",
                "response_format | \"json\" | invalid_type",
                "response_format | {\"type\":\"xml\"} | unsupported_parameter",
                "response_format | {} | missing_required_parameter",
                "json_schema | {\"type\":[\"string\",\"null\"],\"pattern\":\"a\"} | unsupported_parameter",
                "json_schema | {\"type\":[\"integer\",\"null\"],\"minimum\":1} | unsupported_parameter",
                "json_schema | {\"type\":[\"integer\",\"null\"],\"maxItems\":1} | unsupported_parameter"
            })
    void aFieldThatCannotBeIsNamed(String field, String value, String code) throws Exception {
        JsonNode error = error(client.post(CHAT, "{" + HELLO + ",\"" + field + "\":" + value + "}"), 400);
        assertTrue(error.get("param").asText().startsWith(field), error.toString());
        assertEquals(code, error.get("code").asText(), error.toString());
        assertTrue(error.get("message").asText().contains(field), error.toString());
        assertEquals("invalid_request_error", error.get("type").asText());
    }

    /** What clients send and what says nothing new is taken. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "temperature | null",
                "n | 1",
                "user | \"me\"",
                "metadata | {\"a\":\"b\"}",
                "store | false",
                "service_tier | \"auto\"",
                "tools | []",
                "tool_choice | \"none\"",
                "parallel_tool_calls | true",
                "modalities | [\"text\"]",
                "logit_bias | {}",
                "logit_bias | [[97,1.5],[98,false]]",
                "stop | null",
                "response_format | {\"type\":\"text\"}",
                "max_tokens | 5.0",
                "mirostat | 0",
                "json_schema | {\"type\":[\"string\",\"array\",\"null\"],\"maxLength\":3,\"minItems\":1}",
                "stop | \"x\"",
                "safety_identifier | \"x\"",
                "prompt_cache_key | \"x\"",
                "prediction | {\"type\":\"content\"}"
            })
    void aFieldThatChangesNothingIsTaken(String field, String value) throws Exception {
        JsonNode answer = client.post(200, CHAT, "{" + HELLO + ",\"" + field + "\":" + value + "}");
        assertEquals("hi", answer.at("/choices/0/message/content").asText());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "null | messages",
                "[] | messages",
                "\"hi\" | messages",
                "[1] | messages[0]",
                "[{}] | messages[0].role",
                "[{\"role\":\"king\",\"content\":\"x\"}] | messages[0].role",
                "[{\"role\":\"tool\",\"content\":\"x\"}] | messages[0].role",
                "[{\"role\":\"user\"}] | messages[0].content",
                "[{\"role\":\"user\",\"content\":7}] | messages[0].content",
                "[{\"role\":\"user\",\"content\":[7]}] | messages[0].content[0]",
                "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}] | messages[0].content[0].type",
                "[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}] | messages[0].content[0].text",
                "[{\"role\":\"user\",\"content\":\"x\",\"contnt\":1}] | messages[0].contnt",
                "[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]}] | messages[0].tool_calls",
                "[{\"role\":\"user\",\"content\":\"refuse me\"}] | messages"
            })
    void aMessageThatCannotBeIsNamed(String messages, String param) throws Exception {
        assertEquals(
                param,
                error(client.post(CHAT, "{\"messages\":" + messages + "}"), 400)
                        .get("param")
                        .asText());
    }

    @Test
    void partsOfTextAreOneText() throws Exception {
        JsonNode answer = client.post(
                200,
                CHAT,
                "{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"},"
                        + "{\"role\":\"user\",\"name\":\"n\",\"content\":"
                        + "[{\"type\":\"text\",\"text\":\"say:\"},{\"type\":\"text\",\"text\":\"both\"}]}]}");
        assertEquals("both", answer.at("/choices/0/message/content").asText());
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

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "{} | prompt",
                "{\"prompt\":null} | prompt",
                "{\"prompt\":\"\"} | prompt",
                "{\"prompt\":[]} | prompt",
                "{\"prompt\":[\"a\",\"b\"]} | prompt",
                "{\"prompt\":[1,999]} | prompt[1]",
                "{\"prompt\":[1,\"a\"]} | prompt[1]",
                "{\"prompt\":{}} | prompt",
                "{\"prompt\":\"a\",\"suffix\":\"b\"} | suffix",
                "{\"prompt\":\"a\",\"best_of\":2} | best_of",
                "{\"prompt\":\"a\",\"logprobs\":6} | logprobs",
                "{\"prompt\":\"a\",\"logprobs\":true} | logprobs",
                "{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1} | logprobs",
                "{\"prompt\":\"a\",\"messages\":[]} | messages"
            })
    void aCompletionThatCannotBeIsRefused(String body, String param) throws Exception {
        assertEquals(
                param,
                error(client.post("/v1/completions", body), 400).get("param").asText());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "/tokenize | {} | content",
                "/tokenize | {\"content\":1} | content",
                "/tokenize | {\"content\":\"a\",\"parse_special\":1} | parse_special",
                "/tokenize | {\"content\":\"a\",\"x\":1} | x",
                "/detokenize | {} | tokens",
                "/detokenize | {\"tokens\":[-1]} | tokens[0]",
                "/detokenize | {\"tokens\":[1,\"a\"]} | tokens[1]",
                "/slots/0?action=save | {} | filename",
                "/slots/0?action=save | {\"filename\":\"../x\"} | filename",
                "/slots/0?action=save | {\"filename\":\".x\"} | filename",
                "/slots/0?action=save | {\"filename\":\"\"} | filename",
                "/slots/0?action=fly | {} | action",
                "/slots/0 | {} | action"
            })
    void theOtherEndpointsNameWhatTheyRefuse(String path, String body, String param) throws Exception {
        assertEquals(param, error(client.post(path, body), 400).get("param").asText());
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
            error(client.post(CHAT, "{" + HELLO + ",\"grammar\":\"wrong\"" + stream + "}"), 400);
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
