package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executors;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** kvmerge bench-server against servers that are made up. */
@Tag("fast")
class BenchServerTest {
    private static final String CHUNK = "{\"choices\":[{\"delta\":{\"content\":\"word \"}}]}";

    @TempDir
    Path folder;

    private final ConcurrentLinkedQueue<JsonNode> requests = new ConcurrentLinkedQueue<>();
    private HttpServer server;
    private volatile String answer; // what is sent behind "data: ", a line each
    private volatile int status = 200;

    @BeforeEach
    void start() throws IOException {
        server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.setExecutor(Executors.newVirtualThreadPerTaskExecutor());
        server.createContext("/health", exchange -> send(exchange, 200, "{}"));
        server.createContext("/v1/chat/completions", exchange -> {
            requests.add(new ObjectMapper().readTree(exchange.getRequestBody()));
            StringBuilder body = new StringBuilder();
            answer.lines().forEach(line -> body.append("data: ").append(line).append("\n\n"));
            send(exchange, status, body.toString());
        });
        server.start();
        answer = answer(4);
    }

    @AfterEach
    void stop() {
        server.stop(0);
    }

    private static void send(HttpExchange exchange, int status, String body) throws IOException {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(status, 0);
        try (OutputStream out = exchange.getResponseBody()) {
            out.write(bytes);
        }
    }

    private static String answer(int tokens) {
        return "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n" + (CHUNK + "\n").repeat(4)
                + "{\"choices\":[],\"usage\":{\"prompt_tokens\":50,\"completion_tokens\":" + tokens + "}}\n[DONE]";
    }

    private Cli bench(String... more) throws IOException {
        Path text = folder.resolve("text.txt");
        Files.writeString(text, "All work and no play makes a dull text. ".repeat(100));
        String url = "http://127.0.0.1:" + server.getAddress().getPort();
        List<String> args = new ArrayList<>(List.of(
                "bench-server",
                "-f",
                text.toString(),
                "--prompt-characters",
                "200",
                "-n",
                "4",
                "-r",
                "3",
                "--out",
                folder.resolve("out").toString()));
        args.addAll(more.length > 0 ? List.of(more) : List.of("--server", "one=" + url, "--server", "other=" + url));
        return Cli.run(args.toArray(String[]::new));
    }

    @Test
    @Tag("slow")
    void bothServersGetTheSameConversationsOneAndEightAtOnce() throws IOException {
        Cli run = bench().succeeded();
        List<String> rows = run.out()
                .lines()
                .filter(l -> l.matches("(first|second) +\\d.*"))
                .toList();
        assertEquals(8, rows.size(), run.out());
        assertTrue(rows.getFirst().matches("first +1 +one +50 .* 1\\.00 .* 1\\.00 .* 1\\.00"), rows.getFirst());
        assertTrue(rows.get(7).matches("second +8 +other +50 .*"), rows.get(7));
        assertEquals(2 * 2 * (1 + 8) * (1 + 3), requests.size(), "servers, messages, at once, turns with a warm-up");
        Set<String> first = new HashSet<>();
        for (JsonNode request : requests) {
            assertEquals(4, request.get("max_tokens").asInt());
            assertTrue(request.get("stream").asBoolean()
                    && request.get("ignore_eos").asBoolean());
            JsonNode messages = request.get("messages");
            first.add(messages.get(0).get("content").asText());
            if (messages.size() > 1) {
                assertEquals(
                        "word word word word ", messages.get(1).get("content").asText(), "what it said");
                assertEquals(3, messages.size());
            }
        }
        assertEquals((1 + 8) * (1 + 3), first.size(), "no two conversations are alike, but for the two servers");
    }

    @Test
    @Tag("slow")
    void whatIsNoAnswerIsAnError() throws IOException {
        answer = answer(3);
        bench().failed(1, "in 3 tokens where 4 were asked for");
        answer = CHUNK;
        bench().failed(1, "without [DONE]");
        answer = "[DONE]";
        bench().failed(1, "without text");
        answer = "{\"error\":{\"message\":\"no room\"}}";
        bench().failed(1, "no room");
        answer = "not json";
        bench().failed(1, "broke off");
        status = 503;
        answer = "busy";
        bench().failed(1, "503", "busy");
    }

    @Test
    @Tag("slow")
    void whatCannotBeStartedIsAnError() throws IOException {
        bench("--server", "a=" + folder.resolve("nothing") + " {port}").failed(1, "cannot start the server 'a'");
        bench("--server", "a=false {model-of-none} {port}").failed(1, "the server 'a' has ended", "a.log");
        bench("--server", "a=http://127.0.0.1:1").failed(1, "no server is ready at http://127.0.0.1:1");
        bench("--llama-server", folder.resolve("nothing").toString()).failed(2, "make llama-server");
        Cli.run("bench-server", "-n", "1").failed(2, "-n 2 and more");
        for (String url : new String[] {"http://[", "https://", "http:///v1"}) {
            bench("--server", "a=" + url).failed(2, "--server a=" + url + " is no URL of a server");
        }
        Path text = folder.resolve("text.txt");
        Cli.run("bench-server", "-f", text.toString(), "--prompt-characters", "5000")
                .failed(2, "5000 is more than the text");
    }
}
