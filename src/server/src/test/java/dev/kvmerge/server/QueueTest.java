package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.sun.management.HotSpotDiagnosticMXBean;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.net.Socket;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** Waiting, leaving, running out of time, and the end of the server. The fake engine goes no faster than it is let. */
@Tag("fast")
@Timeout(60)
class QueueTest {
    private static final String CHAT = "/v1/chat/completions";

    private final FakeInference fake = new FakeInference();
    private final ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor();

    @TempDir
    Path folder;

    private int dumps;
    private KvmergeServer server;
    private Client client;

    private void start(TestOptions options) {
        fake.pace.drainPermits();
        server = KvmergeServer.start(fake, options.build());
        client = new Client(server);
    }

    @AfterEach
    void stop() {
        threads.shutdownNow();
        client.close();
        server.close();
    }

    private static void until(BooleanSupplier so) throws InterruptedException {
        while (!so.getAsBoolean()) {
            Thread.sleep(2);
        }
    }

    private static String say(String what, String more) {
        return "{\"messages\":[{\"role\":\"user\",\"content\":\"say:" + what + "\"}]" + more + "}";
    }

    private Future<HttpResponse<String>> ask(String what, String more) {
        return threads.submit((Callable<HttpResponse<String>>) () -> client.post(CHAT, say(what, more)));
    }

    private static String content(Future<HttpResponse<String>> answer) throws Exception {
        assertEquals(200, answer.get().statusCode(), answer.get().body());
        return Client.JSON
                .readTree(answer.get().body())
                .at("/choices/0/message/content")
                .asText();
    }

    private int waiting() {
        try {
            return Integer.parseInt(
                    client.get("/metrics").body().replaceAll("(?s).*\nllamacpp:requests_deferred (\\d+).*", "$1"));
        } catch (IOException | InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    @Test
    void asManyWaitAsMayAndTheNextIsToldToComeBack() throws Exception {
        start(TestOptions.slots(1).queue(2));
        Future<HttpResponse<String>> first = ask("one", "");
        until(() -> fake.generating.get() == 1);
        List<Future<HttpResponse<String>>> waiting = new ArrayList<>();
        for (String what : List.of("two", "three")) {
            waiting.add(ask(what, ""));
            until(() -> waiting() == waiting.size());
        }
        HttpResponse<String> refused = client.post(CHAT, say("four", ""));
        assertEquals(503, refused.statusCode());
        assertEquals("1", refused.headers().firstValue("Retry-After").orElseThrow());
        assertEquals(
                "queue_full",
                Client.JSON.readTree(refused.body()).at("/error/code").asText());
        assertFalse(first.isDone());
        fake.pace.release(1000);
        assertEquals("one", content(first));
        assertEquals("two", content(waiting.get(0)));
        assertEquals("three", content(waiting.get(1)));
    }

    @Test
    void withoutAQueueAFreeSlotStillAnswers() throws Exception {
        start(TestOptions.slots(1).queue(0));
        fake.pace.release(1000);
        assertEquals("one", content(ask("one", "")));
    }

    /** Sends a request and leaves the connection open. */
    private Socket send(String body) throws IOException {
        Socket socket = new Socket("127.0.0.1", server.port());
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        socket.getOutputStream()
                .write(("POST " + CHAT + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + bytes.length + "\r\n\r\n")
                        .getBytes(StandardCharsets.US_ASCII));
        socket.getOutputStream().write(bytes);
        return socket;
    }

    @Test
    void aClientThatLeavesStopsItsAnswer() throws Exception {
        start(TestOptions.slots(1));
        for (String more : List.of("", ",\"stream\":true")) {
            int before = fake.cancelled.get();
            Socket socket = send(say("something", more));
            until(() -> fake.generating.get() == 1);
            socket.close();
            until(() -> fake.generating.get() == 0);
            assertTrue(fake.cancelled.get() > before);
        }
        fake.pace.release(1000);
        assertEquals("next", content(ask("next", "")));
        assertTrue(client.get("/metrics").body().contains("kvmerge:clients_gone_total 2"));
    }

    @Test
    void aClientThatLeavesDoesNotStopTheNextOnesAnswer() throws Exception {
        start(TestOptions.slots(1));
        CountDownLatch cancelling = new CountDownLatch(1);
        fake.beforeCancel = () -> {
            cancelling.countDown();
            try {
                Thread.sleep(300); // long enough for the next answer to begin, if that did not wait
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        };
        Socket socket = send(say("something", ""));
        until(() -> fake.generating.get() == 1);
        Future<HttpResponse<String>> next = ask("next", "");
        until(() -> waiting() == 1);
        socket.close();
        cancelling.await();
        fake.pace.release(1); // the answer notices by itself that its client is gone
        until(() -> waiting() == 0 && fake.cancelled.get() == 1);
        fake.pace.release(1000);
        assertEquals("next", content(next));
    }

    @Test
    void aClientThatLeavesTheQueueIsForgotten() throws Exception {
        start(TestOptions.slots(1));
        Future<HttpResponse<String>> first = ask("one", "");
        until(() -> fake.generating.get() == 1);
        Socket leaving = send(say("never", ""));
        until(() -> waiting() == 1);
        Future<HttpResponse<String>> staying = ask("two", "");
        until(() -> waiting() == 2);
        leaving.close();
        until(() -> waiting() == 1);
        fake.pace.release(1000);
        assertEquals("one", content(first));
        assertEquals("two", content(staying));
        assertEquals(1, fake.talks.size());
        assertTrue(client.get("/metrics").body().contains("kvmerge:clients_gone_total 1"));
    }

    @Test
    void twoRequestsOfOneConnectionAreAnsweredInTurn() throws Exception {
        start(TestOptions.slots(1));
        fake.pace.release(1000);
        String get = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
        try (Socket socket = send(say("one", ""))) {
            socket.getOutputStream()
                    .write((get + get.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
                            .getBytes(StandardCharsets.US_ASCII));
            String all = new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
            assertEquals(3, all.split("HTTP/1.1 200", -1).length - 1, all);
            assertTrue(all.contains("\"content\":\"one\""));
        }
    }

    @Test
    void anAnswerThatTakesTooLongEnds() throws Exception {
        start(TestOptions.slots(1).timeout(Duration.ofMillis(300)));
        HttpResponse<String> whole = client.post(CHAT, say("slow", ""));
        assertEquals(504, whole.statusCode());
        assertEquals(
                "timeout", Client.JSON.readTree(whole.body()).at("/error/code").asText());
        fake.pace.release(1);
        String stream = client.post(CHAT, say("slow", ",\"stream\":true")).body();
        assertTrue(stream.contains("\"content\":\"s\"") && stream.contains("data: {\"error\":{"), stream);
        assertFalse(stream.contains("[DONE]"), stream);
    }

    @Test
    @Tag("slow")
    void aRequestWaitsNoLongerThanItMay() throws Exception {
        start(TestOptions.slots(1).timeout(Duration.ofMillis(500)));
        Future<HttpResponse<String>> first = ask("x", "");
        until(() -> fake.generating.get() == 1);
        Future<HttpResponse<String>> second = ask("y", "");
        JsonNode error = Client.JSON.readTree(first.get().body()).get("error");
        assertEquals("timeout", error.get("code").asText());
        assertTrue(List.of(503, 504).contains(second.get().statusCode()));
    }

    @Test
    void aBusySlotIsShownAndNotTouched() throws Exception {
        start(TestOptions.slots(1));
        Future<HttpResponse<String>> answer = ask("x".repeat(1000), "");
        until(() -> fake.generating.get() == 1);
        assertEquals(409, client.post("/slots/0?action=erase", "").statusCode());
        assertTrue(Client.JSON
                .readTree(client.get("/slots").body())
                .at("/0/is_processing")
                .asBoolean());
        assertEquals(200, client.get("/slots/0/cells").statusCode());
        assertFalse(answer.isDone());
        fake.pace.release(10_000);
        answer.get();
        assertEquals(503, statusWhileBusy());
    }

    private int statusWhileBusy() throws Exception {
        fake.pace.drainPermits();
        Future<HttpResponse<String>> answer = ask("x", "");
        until(() -> fake.generating.get() == 1);
        int status = client.get("/slots?fail_on_no_slot=1").statusCode();
        fake.pace.release(1000);
        answer.get();
        return status;
    }

    @Test
    void theEndFinishesWhatRunsAndRefusesTheRest() throws Exception {
        start(TestOptions.slots(1));
        Future<HttpResponse<String>> running = ask("finished", "");
        until(() -> fake.generating.get() == 1);
        Future<HttpResponse<String>> waiting = ask("never", "");
        until(() -> waiting() == 1);
        Future<Boolean> drained = threads.submit(() -> server.drain(Duration.ofSeconds(30)));
        assertEquals(503, waiting.get().statusCode());
        HttpResponse<String> refused = client.post(CHAT, say("late", ""));
        assertEquals(503, refused.statusCode());
        assertEquals(
                "shutting_down",
                Client.JSON.readTree(refused.body()).at("/error/code").asText());
        assertEquals(503, client.get("/health").statusCode());
        assertFalse(drained.isDone());
        fake.pace.release(1000);
        assertEquals("finished", content(running));
        assertTrue(drained.get());
        server.close();
        assertTrue(fake.closed && fake.talks.stream().allMatch(t -> t.closed));
    }

    @Test
    void closingCancelsWhatRuns() throws Exception {
        start(TestOptions.slots(1));
        Future<HttpResponse<String>> running = ask("never", "");
        until(() -> fake.generating.get() == 1);
        server.close();
        try {
            assertEquals(503, running.get().statusCode());
        } catch (ExecutionException e) { // or its connection was closed before
            assertTrue(e.getCause() instanceof IOException, e.toString());
        }
        assertTrue(fake.closed);
    }

    /** More than a piece of each body is left unread, as the refusal does not need it. */
    @Test
    void refusedConnectionsLeaveNothingBehind() throws Exception {
        start(TestOptions.slots(1).body(10));
        byte[] much = new byte[200_000];
        for (int i = 0; i < 200; i++) {
            try (Socket socket = new Socket("127.0.0.1", server.port())) {
                socket.getOutputStream()
                        .write(("POST " + CHAT + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                        + "Content-Length: 200000\r\n\r\n")
                                .getBytes(StandardCharsets.US_ASCII));
                try {
                    socket.getOutputStream().write(much);
                    socket.getInputStream().readNBytes(12);
                } catch (IOException e) {
                    continue; // it was closed before all was sent
                }
            }
        }
        until(() -> readers() == 0);
    }

    /** Threads that read ahead on a connection. */
    private long readers() {
        Path dump = folder.resolve("threads" + dumps++);
        try {
            ManagementFactory.getPlatformMXBean(HotSpotDiagnosticMXBean.class)
                    .dumpThreads(dump.toString(), HotSpotDiagnosticMXBean.ThreadDumpFormat.TEXT_PLAIN);
            return Files.readAllLines(dump).stream()
                    .filter(line -> line.contains("\"read-ahead\""))
                    .count();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
