package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.Socket;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Clients that want to harm the server, or are broken: they are answered or cut off, and others do not notice. */
@Tag("fast")
class HostileTest {
    private static final String CHAT = "/v1/chat/completions";
    private static final String HELLO = "{\"messages\":[{\"role\":\"user\",\"content\":\"say:hi\"}]}";
    private static final int MOST = 1 << 20; // bytes of a body

    @TempDir
    Path folder;

    private KvmergeServer server;
    private Client client;

    private void start(TestOptions options) {
        server = KvmergeServer.start(new FakeInference(), options.files(folder).build());
        client = new Client(server);
    }

    @AfterEach
    void stop() {
        client.close();
        server.close();
    }

    private Socket send(String request) throws IOException {
        Socket socket = new Socket("127.0.0.1", server.port());
        socket.setSoTimeout(30_000);
        socket.getOutputStream().write(request.getBytes(StandardCharsets.ISO_8859_1));
        return socket;
    }

    private static String begun(String header) {
        return "POST " + CHAT + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n\r\n";
    }

    /** All that the server says before it closes the connection, which the client leaves open. */
    private static String answer(Socket socket) throws IOException {
        try (socket) {
            return new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    private static JsonNode error(String answer) throws IOException {
        String body = answer.substring(answer.indexOf("\r\n\r\n") + 4);
        return new ObjectMapper().readTree(body).get("error");
    }

    private void othersAreAnswered() throws Exception {
        HttpResponse<String> answer = client.post(CHAT, HELLO);
        assertEquals(200, answer.statusCode(), answer.body());
    }

    @ParameterizedTest
    @ValueSource(strings = {"zz", "ffffffffffff", "-5", "5x"})
    void chunksOfNoLengthAreRefusedAtOnce(String length) throws Exception {
        start(TestOptions.slots(1));
        String answer = answer(send(begun("Transfer-Encoding: chunked") + "1\r\n{\r\n" + length + "\r\nabc"));
        assertTrue(answer.startsWith("HTTP/1.1 400"), answer);
        assertEquals("bad_request", error(answer).get("code").asText());
        othersAreAnswered();
    }

    @Test
    void anOlderHttpIsToldWhatIsTaken() throws Exception {
        start(TestOptions.slots(1));
        String answer = answer(send("GET /health HTTP/1.0\r\n\r\n"));
        assertTrue(answer.startsWith("HTTP/1.1 505"), answer);
        assertTrue(error(answer).get("message").asText().contains("HTTP/1.1"), answer);
    }

    /** More of them than memory would be for, did each get what it announces. */
    @ParameterizedTest
    @ValueSource(strings = {"Transfer-Encoding: chunked", "Content-Length: " + MOST})
    @Timeout(60)
    void whoAnnouncesMuchAndSendsNothingKeepsNobodyOut(String header) throws Exception {
        start(TestOptions.slots(1).body(MOST));
        long rooms = Runtime.getRuntime().maxMemory() / 64 / MOST + 2;
        List<Socket> waiting = new ArrayList<>();
        try {
            for (long i = 0; i < rooms; i++) {
                waiting.add(send(begun(header) + (header.startsWith("T") ? "1\r\n{\r\n" : "{")));
            }
            othersAreAnswered();
            String large = HELLO.replaceFirst("\\{", "{\"user\":\"" + "x".repeat(MOST / 2) + "\",");
            assertEquals(200, client.post(CHAT, large).statusCode());
            String chunked = begun("Transfer-Encoding: chunked\r\nConnection: close")
                    + Integer.toHexString(HELLO.length()) + "\r\n" + HELLO + "\r\n0\r\n\r\n";
            assertTrue(answer(send(chunked)).startsWith("HTTP/1.1 200"));
        } finally {
            for (Socket socket : waiting) {
                socket.close();
            }
        }
    }

    @Test
    void aBodyThatTricklesIsCutOff() throws Exception {
        start(TestOptions.slots(1).timeout(Duration.ofMillis(300)));
        Socket socket = send(begun("Content-Length: 100000"));
        Thread drops = Thread.ofVirtual().start(() -> {
            try {
                while (true) {
                    socket.getOutputStream().write(' ');
                    Thread.sleep(20);
                }
            } catch (IOException | InterruptedException e) {
                // it is cut off
            }
        });
        String answer = answer(socket);
        drops.join();
        assertTrue(answer.startsWith("HTTP/1.1 408"), answer);
        assertEquals("request_timeout", error(answer).get("code").asText());
    }

    @Test
    void theFolderOfSavedSlotsIsNotTold() throws Exception {
        start(TestOptions.slots(1));
        Files.createDirectory(folder.resolve("folder"));
        Files.writeString(folder.resolve("foreign"), "foreign");
        Files.createSymbolicLink(
                folder.resolve("nowhere"), folder.resolve("none").resolve("x"));
        for (String request :
                List.of("save folder 400", "restore folder 404", "restore foreign 400", "restore nowhere 404")) {
            String[] words = request.split(" ");
            HttpResponse<String> answer =
                    client.post("/slots/0?action=" + words[0], "{\"filename\":\"" + words[1] + "\"}");
            assertEquals(words[2], "" + answer.statusCode(), answer.body());
            assertFalse(answer.body().contains(folder.toString()), answer.body());
        }
        othersAreAnswered();
    }
}
