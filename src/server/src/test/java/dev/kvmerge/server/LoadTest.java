package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.TestModel;
import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.EngineOptions;
import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * Requests of mixed kinds from 32 clients at once, a tenth of them broken off midway, a tenth malformed. Each answer
 * must be the one that was asked for: a grammar has a completion say the request's own number. 'make test-load' sends
 * 10,000.
 */
@Tag("model")
class LoadTest {
    private static final int REQUESTS = Integer.getInteger("kvmerge.load.requests", 400);
    private static final int CLIENTS = 32;
    private static final int PARTS = 5;
    // Bytes that heap and process must grow by in each part but the first to have leaked: what the JVM takes until all
    // of the code has run, it takes once.
    private static final int HEAP_LEAK = 1 << 20;
    private static final int RESIDENT_LEAK = 8 << 20;
    private static final long SEED = 20;
    private static final String CHAT = "/v1/chat/completions";
    private static final String COMPLETION = "/v1/completions";

    private final AtomicInteger next = new AtomicInteger();
    private final ConcurrentSkipListMap<String, AtomicInteger> counts = new ConcurrentSkipListMap<>();
    private final long[] heap = new long[PARTS]; // after each part
    private final long[] resident = new long[PARTS];
    private KvmergeServer server;
    private Client client;

    @Test
    void noRequestIsLostAndMemoryStaysFlat() throws Exception {
        EngineOptions usual = EngineOptions.usual();
        Engine engine = Engine.of(
                TestModel.model(),
                usual.withCells(64)
                        .withBlock(32)
                        .withSessions(4)
                        .withCompute(usual.compute().withThreads(1)));
        engine.useChatTemplate(ChatMl::write);
        Duration patient = Duration.ofMinutes(30); // a machine may be slow, and none is to be lost for that
        server = KvmergeServer.start(
                engine, TestOptions.slots(4).timeout(patient).build());
        client = new Client(server);
        try (ExecutorService clients = Executors.newVirtualThreadPerTaskExecutor()) {
            List<Future<?>> all = new ArrayList<>();
            for (int i = 0; i < CLIENTS; i++) {
                all.add(clients.submit(() -> {
                    work();
                    return null;
                }));
            }
            for (Future<?> one : all) {
                one.get();
            }
        }
        measure(PARTS - 1);
        report();
        assertEquals(
                REQUESTS, counts.values().stream().mapToInt(AtomicInteger::get).sum(), "every request has had its end");
        String metrics = client.get("/metrics").body();
        for (String idle : List.of("llamacpp:requests_processing 0", "llamacpp:requests_deferred 0")) {
            assertTrue(metrics.contains(idle), metrics);
        }
        assertTrue(leastGrowth(heap) < HEAP_LEAK, "bytes of the heap: " + Arrays.toString(heap));
        assertTrue(leastGrowth(resident) < RESIDENT_LEAK, "resident bytes: " + Arrays.toString(resident));
        client.close();
        server.close();
    }

    private void work() throws Exception {
        for (int n = next.getAndIncrement(); n < REQUESTS; n = next.getAndIncrement()) {
            if (n > 0 && n % (REQUESTS / PARTS) == 0) {
                measure(n / (REQUESTS / PARTS) - 1);
            }
            Random random = new Random(SEED + n);
            String kind = request(n, random);
            counts.computeIfAbsent(kind, k -> new AtomicInteger()).incrementAndGet();
        }
    }

    /** Sends a request and checks what comes back; what kind it was. */
    private String request(int n, Random random) throws Exception {
        switch (n % 10) {
            case 0 -> {
                leave(n, random);
                return "left midway";
            }
            case 1 -> {
                malformed(n, random);
                return "malformed";
            }
            case 2 -> {
                return told(random);
            }
            case 3, 4, 5 -> {
                tokens(n);
                return "tokens and back";
            }
            default -> {
                String own = "no " + n + ".";
                String said = random.nextBoolean() ? whole(own, random) : stream(own, random);
                assertEquals(own, said, "the answer is another request's");
                return "answered";
            }
        }
    }

    private String told(Random random) throws Exception {
        String path = List.of("/health", "/v1/models", "/props", "/slots", "/metrics", "/")
                .get(random.nextInt(6));
        assertEquals(200, client.get(path).statusCode(), path);
        return "told";
    }

    private void tokens(int n) throws Exception {
        String text = "Nr. " + n + " – Grüße 世界 🌍";
        ObjectNode content = Client.JSON.createObjectNode().put("content", text);
        JsonNode tokens = client.post(200, "/tokenize", content.toString());
        assertEquals(
                text,
                client.post(200, "/detokenize", tokens.toString())
                        .get("content")
                        .asText());
    }

    private static ObjectNode ask(String own, Random random, boolean chat) {
        ObjectNode request = Client.JSON.createObjectNode().put("max_tokens", 16);
        request.put("grammar", "root ::= \"" + own + "\"");
        if (chat) {
            ObjectNode message = request.putArray("messages").addObject();
            message.put("role", "user").put("content", "Say a number" + "!".repeat(random.nextInt(3)));
        } else {
            request.put("prompt", "A number:");
        }
        return request;
    }

    private String whole(String own, Random random) throws Exception {
        boolean chat = random.nextBoolean();
        JsonNode answer = client.post(
                200, chat ? CHAT : COMPLETION, ask(own, random, chat).toString());
        return answer.at(chat ? "/choices/0/message/content" : "/choices/0/text")
                .asText();
    }

    private String stream(String own, Random random) throws Exception {
        boolean chat = random.nextBoolean();
        ObjectNode request = ask(own, random, chat).put("stream", true);
        HttpResponse<String> response = client.post(chat ? CHAT : COMPLETION, request.toString());
        assertEquals(200, response.statusCode(), response.body());
        StringBuilder text = new StringBuilder();
        for (JsonNode event : Client.events(response.body())) {
            text.append(event.at(chat ? "/choices/0/delta/content" : "/choices/0/text")
                    .asText(""));
        }
        return text.toString();
    }

    private void malformed(int n, Random random) throws Exception {
        switch (random.nextInt(5)) {
            case 0 -> client.post(400, CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"" + n);
            case 1 -> client.post(400, CHAT, "{\"messages\":" + n + "}");
            case 2 -> client.post(400, COMPLETION, "{\"prompt\":\"x\",\"temperature\":\"" + n + "\"}");
            case 3 -> client.post(404, "/v1/nothing/" + n, "{}");
            default -> {
                try (Socket socket = new Socket("127.0.0.1", server.port())) {
                    socket.getOutputStream().write(("no HTTP " + n + "\r\n\r\n").getBytes(StandardCharsets.US_ASCII));
                    String answer = new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
                    assertTrue(answer.startsWith("HTTP/1.1 400") && answer.contains("{\"error\":"), answer);
                }
            }
        }
    }

    /** Asks for much, and leaves: within the request, before the answer, or after its beginning. */
    private void leave(int n, Random random) throws IOException {
        String body = "{\"stream\":true,\"max_tokens\":500,\"ignore_eos\":true,\"prompt\":\"Story " + n + ":\"}";
        String head =
                "POST " + COMPLETION + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + body.length() + "\r\n\r\n";
        byte[] request = (head + body).getBytes(StandardCharsets.US_ASCII);
        try (Socket socket = new Socket("127.0.0.1", server.port())) {
            int how = random.nextInt(3);
            socket.getOutputStream().write(request, 0, how == 0 ? random.nextInt(request.length) : request.length);
            if (how == 2) {
                InputStream in = socket.getInputStream();
                assertTrue(in.readNBytes(15).length == 15);
            }
        }
    }

    private synchronized void measure(int when) throws IOException {
        System.gc();
        heap[when] = Runtime.getRuntime().totalMemory() - Runtime.getRuntime().freeMemory();
        resident[when] = Files.readAllLines(Path.of("/proc/self/status")).stream()
                .filter(line -> line.startsWith("VmRSS:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) << 10)
                .sum();
    }

    private static long leastGrowth(long[] bytes) {
        return IntStream.range(1, bytes.length)
                .mapToLong(i -> bytes[i] - bytes[i - 1])
                .min()
                .orElseThrow();
    }

    private void report() {
        System.out.printf(
                "LoadTest: %,d requests from %d clients: %s; MiB of heap %s, resident %s%n",
                REQUESTS,
                CLIENTS,
                counts,
                Arrays.toString(Arrays.stream(heap).map(bytes -> bytes >> 20).toArray()),
                Arrays.toString(
                        Arrays.stream(resident).map(bytes -> bytes >> 20).toArray()));
    }
}
