package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.TestModel;
import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.EngineOptions;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The endpoints over the real engine and a small model. */
@Tag("model")
class ServerModelTest {
    private static final String CHAT = "/v1/chat/completions";
    private static final int CELLS = 192;
    private static final int BLOCK = 64;

    @TempDir
    static Path folder;

    private static KvmergeServer server;
    private static Client client;

    @BeforeAll
    static void start() {
        EngineOptions usual = EngineOptions.usual();
        Engine engine = Engine.of(
                TestModel.model(),
                usual.withCells(CELLS)
                        .withBlock(BLOCK)
                        .withSessions(2)
                        .withCompute(usual.compute().withThreads(1)));
        engine.useChatTemplate(ChatMl::write);
        server = KvmergeServer.start(engine, TestOptions.slots(2).files(folder).build());
        client = new Client(server);
    }

    @AfterAll
    static void stop() {
        client.close();
        server.close();
    }

    private static ObjectNode request(int most) {
        ObjectNode request = Client.JSON.createObjectNode();
        request.put("temperature", 0).put("max_tokens", most);
        request.putArray("messages");
        return request;
    }

    private static ObjectNode say(ObjectNode request, String role, String content) {
        ((ArrayNode) request.get("messages")).addObject().put("role", role).put("content", content);
        return request;
    }

    private static JsonNode ask(ObjectNode request) throws Exception {
        return client.post(200, CHAT, request.toString());
    }

    private static String content(JsonNode answer) {
        return answer.at("/choices/0/message/content").asText();
    }

    @Test
    void aStreamHasTheTextOfTheWholeAnswer() throws Exception {
        ObjectNode request = say(request(24), "user", "Write one sentence about naïve cafés in Zürich 🌍.");
        JsonNode whole = ask(request.put("cache_prompt", false));
        assertTrue(content(whole).length() > 10, whole.toString());
        request.put("stream", true).put("logprobs", true).put("top_logprobs", 2);
        List<JsonNode> events =
                Client.events(client.post(CHAT, request.toString()).body());
        StringBuilder text = new StringBuilder();
        events.forEach(e -> text.append(e.at("/choices/0/delta/content").asText("")));
        assertEquals(content(whole), text.toString());
        StringBuilder pieces = new StringBuilder();
        for (JsonNode event : events) {
            for (JsonNode token : event.at("/choices/0/logprobs/content")) {
                assertTrue(token.get("logprob").asDouble() <= 0);
                assertEquals(2, token.get("top_logprobs").size());
                assertEquals(token.get("token"), token.at("/top_logprobs/0/token"), "greedy takes the likeliest");
                pieces.append(token.get("token").asText());
            }
        }
        assertEquals(text.toString(), pieces.toString());
    }

    @Test
    void aConversationGoesOnFromWhatWasReadAlsoAfterTokensWereMergedOrDropped() throws Exception {
        ObjectNode request = say(request(8), "system", "You are a helpful assistant who answers briefly.");
        int read = 0;
        JsonNode answer = null;
        for (int turn = 0; turn < 6; turn++) {
            say(request, "user", "Turn " + turn + ". " + "The river runs to the sea. ".repeat(10) + "What runs?");
            answer = ask(request);
            int prompt = answer.at("/usage/prompt_tokens").asInt();
            int cached = answer.at("/usage/prompt_tokens_details/cached_tokens").asInt();
            assertTrue(
                    cached >= read,
                    "turn " + turn + ": " + cached + " of " + prompt + " tokens known, " + read + " read");
            assertTrue(prompt - cached < 120, answer.toString());
            read = answer.at("/usage/total_tokens").asInt() - 1;
            say(request, "assistant", content(answer));
        }
        assertTrue(read > 2 * CELLS, "it has read " + read + " tokens");
        assertTrue(answer.at("/kvmerge/cells").asInt() <= CELLS + BLOCK, answer.toString());
        ((ObjectNode) request.at("/messages/1")).put("content", "Something else.");
        JsonNode edited = ask(say(request, "user", "And now?"));
        assertTrue(
                edited.at("/usage/prompt_tokens_details/cached_tokens").asInt() < 20,
                "no more than the system prompt: " + edited);
    }

    @Test
    void anAnswerObeysASchema() throws Exception {
        ObjectNode request = say(request(60), "user", "Is the sky blue? Answer in JSON.");
        request.set("response_format", Client.JSON.readTree("""
                {"type":"json_schema","json_schema":{"name":"a","strict":true,"schema":{"type":"object","properties":{
                  "answer":{"enum":["yes","no","perhaps \\"so\\""]},"score":{"type":"integer"},
                  "tags":{"type":"array","items":{"type":"string","maxLength":5},"maxItems":2}},
                  "required":["answer","tags"],"additionalProperties":false}}}"""));
        JsonNode answer = ask(request);
        JsonNode json = Client.JSON.readTree(content(answer));
        assertTrue(
                List.of("yes", "no", "perhaps \"so\"")
                        .contains(json.get("answer").asText()),
                answer.toString());
        assertTrue(json.get("tags").size() <= 2, answer.toString());
        request.set("response_format", Client.JSON.readTree("{\"type\":\"json_object\"}"));
        assertTrue(content(ask(request)).startsWith("{"));
        request.remove("response_format");
        request.put("grammar", "root ::= \"blue\" | \"red\"");
        assertTrue(List.of("blue", "red").contains(content(ask(request))));
        request.put("grammar", "root ::= (");
        assertEquals(400, client.post(CHAT, request.toString()).statusCode());
    }

    @Test
    void aTokenThatIsForbiddenDoesNotCome() throws Exception {
        ObjectNode request = Client.JSON.createObjectNode();
        request.put("prompt", "The capital of France is").put("temperature", 0).put("max_tokens", 1);
        JsonNode free = client.post(200, "/v1/completions", request.toString());
        String word = free.at("/choices/0/text").asText();
        JsonNode token = client.post(
                200,
                "/tokenize",
                Client.JSON.createObjectNode().put("content", word).toString());
        request.putObject("logit_bias").put(token.at("/tokens/0").asText(), -100);
        JsonNode other = client.post(200, "/v1/completions", request.toString());
        assertFalse(word.equals(other.at("/choices/0/text").asText()), other.toString());
    }

    @Test
    void textComesBackFromItsTokens() throws Exception {
        String text = "Grüße, 世界 🌍\n\t\"quoted\" \\ <|im_end|>";
        for (boolean special : new boolean[] {false, true}) {
            ObjectNode content =
                    Client.JSON.createObjectNode().put("content", text).put("parse_special", special);
            JsonNode tokens = client.post(200, "/tokenize", content.toString());
            assertEquals(
                    text,
                    client.post(200, "/detokenize", tokens.toString())
                            .get("content")
                            .asText());
        }
    }

    @Test
    void fourAtOnceGetWhatEachGetsAlone() throws Exception {
        List<ObjectNode> requests = new ArrayList<>();
        List<String> alone = new ArrayList<>();
        for (String what : List.of("one", "two", "three", "four")) {
            ObjectNode request = say(request(10), "user", "Say the number " + what + " and a colour.");
            requests.add(request.put("cache_prompt", false));
            alone.add(content(ask(request)));
        }
        try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
            List<Future<JsonNode>> together = new ArrayList<>();
            for (ObjectNode request : requests) {
                together.add(threads.submit((Callable<JsonNode>) () -> ask(request)));
            }
            for (int i = 0; i < requests.size(); i++) {
                assertEquals(alone.get(i), content(together.get(i).get()));
            }
        }
    }

    @Test
    void theCellsOfASlotAreToldAndASavedSlotGoesOn() throws Exception {
        ObjectNode request =
                say(request(8), "system", "You are a helpful assistant.").put("id_slot", 0);
        say(request, "user", "The river runs to the sea. ".repeat(50) + "What runs?");
        JsonNode first = ask(request);
        for (String of : List.of("", "?layer=3&head=1")) {
            JsonNode cells =
                    Client.JSON.readTree(client.get("/slots/0/cells" + of).body());
            assertEquals(30, cells.get("layers").asInt());
            assertEquals(3, cells.get("kv_heads").asInt());
            int[] fates = new int[3];
            StringBuilder text = new StringBuilder();
            for (JsonNode token : cells.get("tokens")) {
                text.append(token.get("piece").asText());
                fates[
                        List.of("kept", "merged", "dropped")
                                .indexOf(token.get("fate").asText())]++;
                double sum = 0;
                for (JsonNode share : token.get("shares")) {
                    sum += share.asDouble();
                }
                assertEquals(1, sum, 1e-6);
                if (token.has("into")) {
                    assertEquals("merged", token.get("fate").asText());
                    assertTrue(token.get("into").asInt() < cells.get("tokens").size());
                }
            }
            assertTrue(text.toString().startsWith("<|im_start|>system\nYou are a helpful"), text.toString());
            assertTrue(fates[0] > 0 && fates[2] > 0, of + ": " + List.of(fates[0], fates[1], fates[2]));
            assertTrue(cells.get("cells").asInt() <= CELLS + BLOCK
                    && cells.get("mib").asDouble() > 1);
        }
        client.post(200, "/slots/0?action=save", "{\"filename\":\"a.bin\"}");
        say(request, "assistant", content(first));
        say(request, "user", "And where to?");
        JsonNode second = ask(request);
        client.post(200, "/slots/1?action=restore", "{\"filename\":\"a.bin\"}");
        JsonNode restored = ask(request.put("id_slot", 1));
        assertEquals(content(second), content(restored));
        assertEquals(second.get("usage"), restored.get("usage"));
        Files.writeString(folder.resolve("b.bin"), "no session");
        assertEquals(
                400,
                client.post("/slots/1?action=restore", "{\"filename\":\"b.bin\"}")
                        .statusCode());
    }
}
