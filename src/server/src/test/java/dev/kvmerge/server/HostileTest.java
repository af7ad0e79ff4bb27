package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
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

    private final FakeInference fake = new FakeInference();
    private KvmergeServer server;
    private Client client;

    private void start(TestOptions options) {
        start(options, Runtime.getRuntime().maxMemory());
    }

    private void start(TestOptions options, long memory) {
        server = KvmergeServer.start(fake, options.files(folder).build(), memory);
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

    /** Whole bodies that wait to be read: more than memory is for are refused, and those that wait are answered. */
    @ParameterizedTest
    @ValueSource(ints = {MOST, 32 << 10})
    @Timeout(60)
    void wholeBodiesThatWaitAreCounted(int size) throws Exception {
        int held = 2 * MOST; // bytes of bodies, for an eighth of the memory
        start(TestOptions.slots(1).body(MOST).timeout(Duration.ofMinutes(10)), 8L * held);
        CountDownLatch read = new CountDownLatch(1);
        CountDownLatch first = new CountDownLatch(1);
        fake.beforeTokenize = () -> {
            first.countDown();
            try {
                read.await();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        };
        String body = "{\"content\":\"" + "x".repeat(size - 14) + "\"}";
        int fit = (held >> 12) / ((size >> 12) - 1); // but for the first 4 KiB of each
        List<Thread> clients = new ArrayList<>();
        Semaphore refused = new Semaphore(0);
        AtomicInteger answered = new AtomicInteger();
        try {
            for (int i = 0; i < 2 * fit; i++) {
                clients.add(Thread.ofVirtual().start(() -> {
                    String answer = whole(body);
                    if (answer.startsWith("HTTP/1.1 200")) {
                        answered.incrementAndGet();
                    } else if (answer.isEmpty() || answer.startsWith("HTTP/1.1 503")) {
                        refused.release();
                    }
                }));
                assertTrue(first.await(30, TimeUnit.SECONDS));
            }
            assertTrue(refused.tryAcquire(fit, 30, TimeUnit.SECONDS), "none was refused while all wait");
        } finally {
            read.countDown();
        }
        for (Thread one : clients) {
            one.join();
        }
        assertTrue(answered.get() > 0 && answered.get() <= fit, answered + " of " + fit);
        assertEquals(fit, answered.get() + refused.availablePermits());
        othersAreAnswered();
        assertTrue(whole(body).startsWith("HTTP/1.1 200"), "all is given back");
    }

    /** What a client is told that sends a whole body; nothing if the connection ended while it sent. */
    private String whole(String body) {
        String header = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: ";
        try {
            return answer(send(header + body.length() + "\r\n\r\n" + body));
        } catch (SocketTimeoutException e) {
            return "no answer";
        } catch (IOException e) {
            return "";
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
            assertTrue(answer.body().contains(words[1]), answer.body());
        }
        othersAreAnswered();
    }
}
