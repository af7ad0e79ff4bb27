package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.net.Socket;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Each endpoint answers as OpenAI's and llama-server's do. */
@Tag("fast")
class EndpointsTest {
    private static final String CHAT = "/v1/chat/completions";

    @TempDir
    Path folder;

    private FakeInference fake;
    private KvmergeServer server;
    private Client client;

    @BeforeEach
    void start() {
        fake = new FakeInference();
        server = KvmergeServer.start(fake, TestOptions.slots(2).files(folder).build());
        client = new Client(server);
    }

    @AfterEach
    void stop() {
        client.close();
        server.close();
    }

    private static String user(String content, String more) {
        return "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"" + content + "\"}]" + more + "}";
    }

    @Test
    void aChatIsAnsweredWhole() throws Exception {
        JsonNode answer = client.post(200, CHAT, user("say:grüße 🌍", ""));
        assertEquals("chat.completion", answer.get("object").asText());
        assertTrue(answer.get("id").asText().startsWith("chatcmpl-"));
        assertEquals("fake", answer.get("model").asText());
        JsonNode choice = answer.at("/choices/0");
        assertEquals("assistant", choice.at("/message/role").asText());
        assertEquals("grüße 🌍", choice.at("/message/content").asText());
        assertEquals("stop", choice.get("finish_reason").asText());
        assertTrue(choice.get("logprobs").isNull());
        int prompt = "u:say:grüße 🌍\fa:".getBytes("UTF-8").length;
        assertEquals(prompt, answer.at("/usage/prompt_tokens").asInt());
        int made = "grüße 🌍\f".getBytes("UTF-8").length;
        assertEquals(made, answer.at("/usage/completion_tokens").asInt());
        assertEquals(prompt + made, answer.at("/usage/total_tokens").asInt());
        assertEquals(0, answer.at("/usage/prompt_tokens_details/cached_tokens").asInt());
        assertEquals(prompt + made, answer.at("/kvmerge/cells").asInt());
        assertEquals(192, answer.at("/kvmerge/allocated").asInt());
        assertEquals(1.5, answer.at("/kvmerge/mib").asDouble());
        assertEquals(prompt, answer.at("/timings/prompt_n").asInt());
    }

    @Test
    void aChatIsAnsweredAsAStream() throws Exception {
        HttpResponse<String> response =
                client.post(CHAT, user("say:añb", ",\"stream\":true,\"stream_options\":{\"include_usage\":true}"));
        assertEquals(
                "text/event-stream; charset=utf-8",
                response.headers().firstValue("Content-Type").orElseThrow());
        List<JsonNode> events = Client.events(response.body());
        assertEquals("assistant", events.getFirst().at("/choices/0/delta/role").asText());
        assertTrue(events.getFirst().at("/kvmerge/slot").isInt());
        StringBuilder text = new StringBuilder();
        events.forEach(e -> text.append(e.at("/choices/0/delta/content").asText("")));
        assertEquals("añb", text.toString());
        JsonNode last = events.get(events.size() - 2);
        assertEquals("stop", last.at("/choices/0/finish_reason").asText());
        assertTrue(last.at("/choices/0/delta").isEmpty());
        JsonNode usage = events.getLast();
        assertEquals(0, usage.get("choices").size());
        assertEquals(5, usage.at("/usage/completion_tokens").asInt());
        for (JsonNode event : events) {
            assertEquals("chat.completion.chunk", event.get("object").asText());
            assertEquals(events.getFirst().get("id"), event.get("id"));
            assertTrue(event.has("usage"));
        }
    }

    @Test
    void aStreamHasUsageOnlyWhereItIsAskedFor() throws Exception {
        List<JsonNode> events = Client.events(
                client.post(CHAT, user("say:x", ",\"stream\":true")).body());
        assertEquals("stop", events.getLast().at("/choices/0/finish_reason").asText());
        assertTrue(events.stream().noneMatch(e -> e.has("usage")));
    }

    @Test
    void aCompletionIsAnsweredWholeAndAsAStream() throws Exception {
        JsonNode answer = client.post(200, "/v1/completions", "{\"prompt\":\"say:hello\",\"echo\":true}");
        assertEquals("text_completion", answer.get("object").asText());
        assertEquals("say:hellohello", answer.at("/choices/0/text").asText());
        List<JsonNode> events =
                Client.events(client.post("/v1/completions", "{\"prompt\":[\"say:hello\"],\"stream\":true}")
                        .body());
        StringBuilder text = new StringBuilder();
        events.forEach(e -> text.append(e.at("/choices/0/text").asText()));
        assertEquals("hello", text.toString());
        JsonNode ofTokens = client.post(200, "/v1/completions", "{\"prompt\":[115,97,121,58,104,105]}");
        assertEquals("hi", ofTokens.at("/choices/0/text").asText());
    }

    @Test
    void limitsAndStopsEndAnAnswer() throws Exception {
        for (String limit : List.of("max_tokens", "max_completion_tokens", "n_predict")) {
            JsonNode cut = client.post(200, CHAT, user("say:abcdef", ",\"" + limit + "\":3"));
            assertEquals("abc", cut.at("/choices/0/message/content").asText(), limit);
            assertEquals("length", cut.at("/choices/0/finish_reason").asText());
        }
        JsonNode stopped = client.post(200, CHAT, user("say:abcdef", ",\"stop\":[\"x\",\"cd\"]"));
        assertEquals("ab", stopped.at("/choices/0/message/content").asText());
        assertEquals("stop", stopped.at("/choices/0/finish_reason").asText());
        JsonNode endless = client.post(200, CHAT, user("go on", ""));
        int prompt = endless.at("/usage/prompt_tokens").asInt();
        assertEquals(4096, endless.at("/usage/total_tokens").asInt(), "the context is full after " + prompt);
        assertEquals("length", endless.at("/choices/0/finish_reason").asText());
    }

    /** As a container's health check may ask. */
    @Test
    void theHeadOfHealthIsGiven() throws Exception {
        try (Socket socket = new Socket("127.0.0.1", server.port())) {
            String request = "HEAD /health HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n";
            socket.getOutputStream().write(request.getBytes(StandardCharsets.US_ASCII));
            String answer = new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
            assertTrue(answer.startsWith("HTTP/1.1 200"), answer);
            assertTrue(answer.endsWith("\r\n\r\n"), "no body: " + answer);
        }
        assertEquals(405, client.send("HEAD", CHAT, null).statusCode());
    }

    @Test
    void logProbabilitiesAreOfTheTextsTokens() throws Exception {
        JsonNode chat = client.post(200, CHAT, user("say:hé", ",\"logprobs\":true,\"top_logprobs\":1"));
        JsonNode content = chat.at("/choices/0/logprobs/content");
        assertEquals(2, content.size());
        assertEquals("é", content.get(1).get("token").asText());
        assertEquals(
                List.of(0xC3, 0xA9),
                List.of(
                        content.at("/1/bytes/0").asInt(),
                        content.at("/1/bytes/1").asInt()));
        assertEquals("é", content.at("/1/top_logprobs/0/token").asText());
        JsonNode old = client.post(200, "/v1/completions", "{\"prompt\":\"say:hé\",\"logprobs\":1}");
        JsonNode logprobs = old.at("/choices/0/logprobs");
        assertEquals("[\"h\",\"é\"]", logprobs.get("tokens").toString());
        assertEquals("[0,1]", logprobs.get("text_offset").toString());
        assertEquals(-0.5, logprobs.at("/top_logprobs/1/é").asDouble());
    }

    @Test
    void aStreamsPiecesHaveTheLogProbabilitiesOfTheTokensThatBeginInThem() throws Exception {
        List<JsonNode> chat = Client.events(client.post(CHAT, user("say:hé世!", ",\"stream\":true,\"logprobs\":true"))
                .body());
        StringBuilder pieces = new StringBuilder();
        for (JsonNode event : chat) {
            JsonNode choice = event.at("/choices/0");
            int content = choice.at("/logprobs/content").size();
            String text = choice.at("/delta/content").asText("");
            pieces.append(text).append(content);
            assertTrue(!choice.get("finish_reason").isTextual()
                    || choice.get("logprobs").isNull());
        }
        assertEquals("0h1é1世3!10", pieces.toString(), "the first piece has no text, nor has the last");
        String prompt = "{\"prompt\":\"say:hé世!\",\"stream\":true,\"logprobs\":1}";
        List<String> offsets = new ArrayList<>();
        for (JsonNode event :
                Client.events(client.post("/v1/completions", prompt).body())) {
            offsets.add(event.at("/choices/0/logprobs/text_offset").toString());
        }
        assertEquals(List.of("", "[0]", "[1]", "[2,2,2]", "[3]", ""), offsets);
    }

    @Test
    void aConversationThatGoesOnIsReadFromWhereItIsNew() throws Exception {
        String turn = "{\"role\":\"system\",\"content\":\"be brief\"},{\"role\":\"user\",\"content\":\"say:one\"}";
        JsonNode first = client.post(200, CHAT, "{\"messages\":[" + turn + "]}");
        client.post(200, CHAT, user("say:somebody else", "")); // in the other slot
        String next =
                turn + ",{\"role\":\"assistant\",\"content\":\"one\"},{\"role\":\"user\",\"content\":\"say:two\"}";
        JsonNode second = client.post(200, CHAT, "{\"messages\":[" + next + "]}");
        assertEquals(
                first.at("/usage/total_tokens").asInt(),
                second.at("/usage/prompt_tokens_details/cached_tokens").asInt());
        assertEquals(first.at("/kvmerge/slot"), second.at("/kvmerge/slot"));
        JsonNode edited = client.post(200, CHAT, "{\"messages\":[" + next.replace("say:one", "say:uno") + "]}");
        assertEquals(0, edited.at("/usage/prompt_tokens_details/cached_tokens").asInt());
        JsonNode again = client.post(200, CHAT, "{\"cache_prompt\":false,\"messages\":[" + turn + "]}");
        assertEquals(0, again.at("/usage/prompt_tokens_details/cached_tokens").asInt());
    }

    @Test
    void theLeastRecentlyUsedSlotIsTakenAndOneCanBeNamed() throws Exception {
        int[] slots = new int[4];
        for (int i = 0; i < 3; i++) {
            slots[i] = client.post(200, CHAT, user("say:" + i, ""))
                    .at("/kvmerge/slot")
                    .asInt();
        }
        assertTrue(slots[0] != slots[1] && slots[2] == slots[0]);
        for (int wanted : new int[] {1, 1, 0}) {
            JsonNode answer = client.post(200, CHAT, user("say:x", ",\"id_slot\":" + wanted));
            assertEquals(wanted, answer.at("/kvmerge/slot").asInt());
        }
    }

    @Test
    void theModelAndTheServerAreTold() throws Exception {
        assertEquals("{\"status\":\"ok\"}", client.get("/health").body());
        JsonNode models = Client.JSON.readTree(client.get("/v1/models").body());
        assertEquals("fake", models.at("/data/0/id").asText());
        assertEquals(257, models.at("/data/0/meta/n_vocab").asInt());
        assertEquals(
                "model",
                Client.JSON
                        .readTree(client.get("/v1/models/fake").body())
                        .get("object")
                        .asText());
        assertEquals(404, client.get("/v1/models/gpt-4o").statusCode());
        JsonNode props = Client.JSON.readTree(client.get("/props").body());
        assertEquals(2, props.get("total_slots").asInt());
        assertEquals("fake", props.get("model_alias").asText());
        assertEquals(
                0.8, props.at("/default_generation_settings/params/temperature").asDouble());
        assertEquals("{{ template }}", props.get("chat_template").asText());
        assertEquals(3, props.at("/kvmerge/kv_heads").asInt());
    }

    @Test
    void textBecomesTokensAndTextAgain() throws Exception {
        JsonNode tokens = client.post(200, "/tokenize", "{\"content\":\"hé\\f\"}");
        assertEquals("[104,195,169,256]", tokens.get("tokens").toString());
        JsonNode text = client.post(200, "/detokenize", "{\"tokens\":[104,195,169]}");
        assertEquals("hé", text.get("content").asText());
        JsonNode pieces = client.post(200, "/tokenize", "{\"content\":\"hé\",\"with_pieces\":true}");
        assertEquals(
                "[{\"id\":104,\"piece\":\"h\"},{\"id\":195,\"piece\":[195]},{\"id\":169,\"piece\":[169]}]",
                pieces.get("tokens").toString());
        assertEquals(
                12,
                client.post(200, "/tokenize", "{\"content\":\"\\f\",\"parse_special\":false}")
                        .at("/tokens/0")
                        .asInt());
    }

    @Test
    void slotsAreShownAndTheirCells() throws Exception {
        client.post(200, CHAT, user("say:hi", ",\"id_slot\":1"));
        JsonNode slots = Client.JSON.readTree(client.get("/slots").body());
        assertEquals(2, slots.size());
        assertFalse(slots.at("/1/is_processing").asBoolean());
        int read = slots.at("/1/kvmerge/tokens").asInt();
        assertEquals("u:say:hi\fa:hi\f".length(), read);
        JsonNode all = Client.JSON.readTree(client.get("/slots/1/cells").body());
        assertEquals(read, all.get("tokens").size());
        assertEquals("merged", all.at("/tokens/0/fate").asText());
        assertEquals("[0.25,0.5,0.25]", all.at("/tokens/0/shares").toString());
        assertEquals("u", all.at("/tokens/0/piece").asText());
        assertEquals(1.5, all.get("mib").asDouble());
        JsonNode one =
                Client.JSON.readTree(client.get("/slots/1/cells?layer=1&head=2").body());
        assertEquals("kept", one.at("/tokens/0/fate").asText());
        assertFalse(one.at("/tokens/0").has("into"));
        assertEquals("merged", one.at("/tokens/1/fate").asText());
        assertEquals(2, one.at("/tokens/1/into").asInt());
    }

    @Test
    void slotsAreSavedRestoredAndErased() throws Exception {
        int read = client.post(200, CHAT, user("say:hi", ",\"id_slot\":0"))
                .at("/usage/total_tokens")
                .asInt();
        JsonNode saved = client.post(200, "/slots/0?action=save", "{\"filename\":\"a.bin\"}");
        assertEquals(read, saved.get("n_saved").asInt());
        assertEquals(Files.size(folder.resolve("a.bin")), saved.get("n_written").asLong());
        assertEquals(
                read,
                client.post(200, "/slots/0?action=erase", "").get("n_erased").asInt());
        assertEquals(0, fake.talks.get(0).tokens().length);
        JsonNode restored = client.post(200, "/slots/1?action=restore", "{\"filename\":\"a.bin\"}");
        assertEquals(read, restored.get("n_restored").asInt());
        assertEquals(read, fake.talks.get(1).tokens().length);
    }

    @Test
    void metricsAreToldInPrometheusForm() throws Exception {
        client.post(200, CHAT, user("say:hello", ""));
        client.post(400, CHAT, "{}");
        HttpResponse<String> response = client.get("/metrics");
        assertTrue(response.headers().firstValue("Content-Type").orElseThrow().startsWith("text/plain; version=0.0.4"));
        List<String> lines = response.body().lines().toList();
        assertTrue(lines.contains("llamacpp:tokens_predicted_total 6"), response.body());
        assertTrue(lines.contains("llamacpp:requests_processing 0"));
        assertTrue(lines.contains("kvmerge:requests_total{status=\"200\"} 1"));
        assertTrue(lines.contains("kvmerge:requests_total{status=\"400\"} 1"));
        assertTrue(lines.contains("kvmerge:cells_allocated 384"));
        for (String line : lines) {
            assertTrue(
                    line.matches("# (HELP|TYPE) [a-z]+:[a-z_]+ .+|[a-z]+:[a-z_]+(\\{status=\"\\d+\"\\})? [0-9.E-]+"),
                    line);
        }
    }

    @Test
    void logprobsAreOfTheTextsTokens() throws Exception {
        JsonNode logprobs = client.post(
                        200, "/v1/completions", "{\"prompt\":\"say:a\uE001世\uD83C\uDF0Dé!\",\"logprobs\":0}")
                .at("/choices/0/logprobs");
        assertEquals("[0,1,1,1,2,2,2,2,3,4]", logprobs.get("text_offset").toString());
        assertEquals("é", logprobs.at("/tokens/8").asText());
        assertEquals("!", logprobs.at("/tokens/9").asText());
        JsonNode content = client.post(200, CHAT, user("say:a\uE001\uE001世b", ",\"logprobs\":true"))
                .at("/choices/0/logprobs/content");
        assertEquals(5, content.size(), content.toString());
        assertEquals("b", content.at("/4/token").asText());
    }

    @Test
    void cellsAreShownOfTwoSlotsAtATimeAndOnlyWhenAskedFor() throws Exception {
        client.post(200, CHAT, user("say:hi", ""));
        assertEquals(0, fake.pictures.get(), "an answer needs no more than how full the cells are");
        AtomicInteger now = new AtomicInteger();
        AtomicInteger most = new AtomicInteger();
        fake.beforeCells = () -> {
            most.accumulateAndGet(now.incrementAndGet(), Math::max);
            LockSupport.parkNanos(20_000_000);
            now.decrementAndGet();
        };
        try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
            List<Future<HttpResponse<String>>> all = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                all.add(threads.submit(() -> client.get("/slots/0/cells")));
            }
            for (Future<HttpResponse<String>> one : all) {
                assertEquals(200, one.get().statusCode());
                assertEquals(
                        2, Client.JSON.readTree(one.get().body()).get("pinned").asInt());
            }
        }
        assertEquals(2, most.get());
    }
}
