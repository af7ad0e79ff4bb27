package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.net.Socket;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Which web pages may ask, and by which names of the server. */
@Tag("fast")
class OriginsTest {
    private static final String CHAT = "/v1/chat/completions";
    private static final String HELLO = "{\"messages\":[{\"role\":\"user\",\"content\":\"say:hi\"}]}";
    private static final String ELSEWHERE = "http://elsewhere.example";

    private FakeInference fake;
    private KvmergeServer server;
    private Client client;

    private void start(TestOptions options) {
        fake = new FakeInference();
        server = KvmergeServer.start(fake, options.build());
        client = new Client(server);
    }

    @AfterEach
    void stop() {
        client.close();
        server.close();
    }

    @Test
    void pagesOfOtherOriginsMayNotAsk() throws Exception {
        start(TestOptions.slots(1));
        for (String origin : List.of(ELSEWHERE, "null", "http://127.0.0.1:1", "http://localhost:" + server.port())) {
            for (HttpResponse<String> response : List.of(
                    client.get("/slots/0/cells", "Origin", origin),
                    client.get("/health", "Origin", origin),
                    client.send("OPTIONS", CHAT, null, "Origin", origin),
                    client.post(CHAT, HELLO, "Origin", origin, "Content-Type", "text/plain"),
                    client.post("/slots/0?action=erase", "", "Origin", origin))) {
                assertEquals(403, response.statusCode(), response.body());
                assertTrue(response.body().contains("\"code\":\"origin_not_allowed\""), response.body());
                assertTrue(response.body().contains("--cors-origin"), response.body());
                assertFalse(response.headers()
                        .firstValue("Access-Control-Allow-Origin")
                        .isPresent());
            }
        }
        assertEquals(0, fake.talks.getFirst().tokens().length, "nothing was read");
    }

    @Test
    void theServersOwnPageMayAsk() throws Exception {
        start(TestOptions.slots(1));
        HttpResponse<String> own = client.post(CHAT, HELLO, "Origin", server.url());
        assertEquals(200, own.statusCode(), own.body());
        assertFalse(own.headers().firstValue("Access-Control-Allow-Origin").isPresent());
    }

    @Test
    void pagesThatAreNamedMayAsk() throws Exception {
        start(TestOptions.slots(1).origins("https://other.example", ELSEWHERE));
        HttpResponse<String> asked = client.send(
                "OPTIONS", CHAT, null, "Origin", ELSEWHERE, "Access-Control-Request-Headers", "authorization,x-a");
        assertEquals(200, asked.statusCode());
        assertEquals(ELSEWHERE, header(asked, "Access-Control-Allow-Origin"));
        assertEquals("GET, POST", header(asked, "Access-Control-Allow-Methods"));
        assertEquals("authorization,x-a", header(asked, "Access-Control-Allow-Headers"));
        HttpResponse<String> answer = client.post(CHAT, HELLO, "Origin", ELSEWHERE);
        assertEquals(200, answer.statusCode());
        assertEquals(ELSEWHERE, header(answer, "Access-Control-Allow-Origin"));
        assertEquals("Origin", header(answer, "Vary"));
        assertEquals(403, client.get("/slots", "Origin", ELSEWHERE + ".org").statusCode());
    }

    @Test
    void allPagesMayAskWhereTheStarSaysSo() throws Exception {
        start(TestOptions.slots(1).origins("*"));
        assertEquals(ELSEWHERE, header(client.get("/slots", "Origin", ELSEWHERE), "Access-Control-Allow-Origin"));
        assertTrue(byHost("rebound.example").startsWith("HTTP/1.1 200"));
    }

    private static String header(HttpResponse<String> response, String name) {
        return response.headers().firstValue(name).orElseThrow();
    }

    /** What GET /slots tells who asks for a host of this name. */
    private String byHost(String host) throws Exception {
        try (Socket socket = new Socket("127.0.0.1", server.port())) {
            String request = "GET /slots HTTP/1.1\r\nConnection: close\r\nHost: " + host + "\r\nOrigin: http://" + host
                    + "\r\n\r\n";
            socket.getOutputStream().write(request.getBytes(StandardCharsets.US_ASCII));
            return new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    /** A page's own name may be made to lead to 127.0.0.1: then its origin is the host that is asked. */
    @ParameterizedTest
    @CsvSource({
        "rebound.example:8080, 403",
        "rebound.example, 403",
        "127.0.0.1.rebound.example, 403",
        "localhost.rebound.example, 403",
        "chat.example, 200",
        "localhost:8080, 200",
        "LOCALHOST, 200",
        "127.0.0.1, 200",
        "[::1]:80, 200"
    })
    void aNameThatIsNotTheServersIsRefused(String host, int status) throws Exception {
        start(TestOptions.slots(1).origins("https://chat.example"));
        String answer = byHost(host);
        assertTrue(answer.startsWith("HTTP/1.1 " + status), answer);
        assertEquals(status == 403, answer.contains("\"code\":\"host_not_allowed\""), answer);
    }

    /** Others of the network may ask there, by an address or a name that no domain's owner can have. */
    @ParameterizedTest
    @CsvSource({
        "rebound.example:8080, 403",
        "192.168.0.7.rebound.example, 403",
        "rebound.example., 403",
        "local, 200",
        "gpu:8080, 200",
        "gpu.local:8080, 200",
        "llm.internal, 200",
        "192.168.0.7:8080, 200",
        "[fd00::7]:8080, 200",
        "localhost:8080, 200",
        "chat.example, 200"
    })
    void onAnotherAddressDomainsAreRefused(String host, int status) throws Exception {
        start(TestOptions.slots(1).host("0.0.0.0").origins("https://chat.example"));
        String answer = byHost(host);
        assertTrue(answer.startsWith("HTTP/1.1 " + status), answer);
        assertEquals(status == 403, answer.contains("\"code\":\"host_not_allowed\""), answer);
    }

    @Test
    void withAKeyEveryNameIsTaken() throws Exception {
        start(TestOptions.slots(1).keys("sesame"));
        assertTrue(byHost("rebound.example").startsWith("HTTP/1.1 401"));
    }
}
