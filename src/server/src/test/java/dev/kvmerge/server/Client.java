package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.List;

/** Asks a server, as a test wants it asked. */
final class Client implements AutoCloseable {
    static final ObjectMapper JSON = new ObjectMapper();
    private final String url;
    private final HttpClient http =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    Client(KvmergeServer server) {
        this.url = server.url();
    }

    HttpResponse<String> get(String path, String... headers) throws IOException, InterruptedException {
        return send("GET", path, null, headers);
    }

    HttpResponse<String> post(String path, String body, String... headers) throws IOException, InterruptedException {
        return send("POST", path, body, headers);
    }

    /** The answer, which must have this status, as JSON. */
    JsonNode post(int status, String path, String body) throws IOException, InterruptedException {
        HttpResponse<String> response = post(path, body);
        if (response.statusCode() != status) {
            throw new AssertionError(response.statusCode() + " instead of " + status + ": " + response.body());
        }
        return JSON.readTree(response.body());
    }

    HttpResponse<String> send(String method, String path, String body, String... headers)
            throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + path));
        request.method(
                method, body == null ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofString(body));
        if (headers.length > 0) {
            request.headers(headers);
        }
        return http.send(request.build(), BodyHandlers.ofString());
    }

    /** The events of a stream; the last must be [DONE], which is left out. */
    static List<JsonNode> events(String stream) throws IOException {
        List<JsonNode> events = new ArrayList<>();
        String[] all = stream.split("\n\n");
        for (int i = 0; i < all.length; i++) {
            if (!all[i].startsWith("data: ")) {
                throw new AssertionError("no event: " + all[i]);
            }
            String data = all[i].substring(6);
            if (i == all.length - 1) {
                if (!data.equals("[DONE]")) {
                    throw new AssertionError("the last event is " + data);
                }
            } else {
                events.add(JSON.readTree(data));
            }
        }
        return events;
    }

    @Override
    public void close() {
        http.close();
    }
}
