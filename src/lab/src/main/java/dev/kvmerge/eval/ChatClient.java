package dev.kvmerge.eval;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.io.IOException;
import java.net.ConnectException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.stream.Stream;

/** Asks a server with OpenAI's protocol and watches its answer come. */
final class ChatClient implements AutoCloseable {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final String DATA = "data:";
    private static final int OK = 200;

    private final HttpClient http =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final URI base;
    private final Duration patience;

    /**
     * A client of one server.
     *
     * @param patience for an answer, from its first byte to its last
     */
    ChatClient(URI base, Duration patience) {
        this.base = base;
        this.patience = patience;
    }

    /**
     * An answer and when it came.
     *
     * @param prompt tokens of the conversation, as the server counts them; 0 if it does not say
     * @param tokens of the answer, likewise
     * @param start nanoseconds, of the request
     * @param first of the first text of the answer
     * @param last of its last
     */
    record Answer(String text, int prompt, int tokens, long start, long first, long last) {}

    /** Whether the server answers requests; its /health says so. */
    boolean isReady() {
        try {
            HttpRequest request = HttpRequest.newBuilder(base.resolve("/health"))
                    .timeout(Duration.ofSeconds(5))
                    .build();
            return http.send(request, HttpResponse.BodyHandlers.discarding()).statusCode() == OK;
        } catch (ConnectException e) {
            return false;
        } catch (IOException e) {
            return false; // it is starting
        } catch (InterruptedException e) {
            throw interrupted(e);
        }
    }

    /**
     * Asks, and reads the whole answer.
     *
     * @param tokens of the answer, no more and no fewer
     * @throws KvmergeException if the server refuses, breaks off, or sends an answer without text
     */
    Answer ask(List<ChatMessage> conversation, int tokens) {
        HttpRequest request = HttpRequest.newBuilder(base.resolve("/v1/chat/completions"))
                .header("Content-Type", "application/json")
                .timeout(patience)
                .POST(HttpRequest.BodyPublishers.ofString(body(conversation, tokens)))
                .build();
        long start = System.nanoTime();
        try {
            HttpResponse<Stream<String>> response = http.send(request, HttpResponse.BodyHandlers.ofLines());
            try (Stream<String> lines = response.body()) {
                if (response.statusCode() != OK) {
                    throw failed("answers " + response.statusCode() + ": "
                            + lines.limit(5).reduce("", String::concat));
                }
                return read(lines.iterator(), start);
            }
        } catch (IOException | java.io.UncheckedIOException e) {
            throw failed("broke off: " + e);
        } catch (InterruptedException e) {
            throw interrupted(e);
        }
    }

    private static String body(List<ChatMessage> conversation, int tokens) {
        ObjectNode body = JSON.createObjectNode();
        ArrayNode messages = body.putArray("messages");
        conversation.forEach(m -> messages.addObject().put("role", m.role()).put("content", m.content()));
        body.put("stream", true);
        body.putObject("stream_options").put("include_usage", true);
        body.put("temperature", 0);
        body.put("max_tokens", tokens);
        body.put("ignore_eos", true); // both servers take it
        return body.toString();
    }

    private Answer read(Iterator<String> lines, long start) throws JsonProcessingException {
        StringBuilder text = new StringBuilder();
        long first = 0;
        long last = 0;
        int prompt = 0;
        int tokens = 0;
        boolean done = false;
        while (!done && lines.hasNext()) {
            String line = lines.next();
            if (!line.startsWith(DATA)) {
                continue;
            }
            String data = line.substring(DATA.length()).strip();
            done = data.equals("[DONE]");
            if (done) {
                continue;
            }
            JsonNode event = JSON.readTree(data);
            if (event.has("error")) {
                throw failed("failed in its answer: " + event.get("error"));
            }
            String piece = event.at("/choices/0/delta/content").asText("");
            if (!piece.isEmpty() && !event.at("/choices/0/delta/content").isNull()) {
                last = System.nanoTime();
                first = first == 0 ? last : first;
                text.append(piece);
            }
            if (event.path("usage").isObject()) {
                prompt = event.at("/usage/prompt_tokens").asInt();
                tokens = event.at("/usage/completion_tokens").asInt();
            }
        }
        if (!done || first == 0) {
            throw failed(done ? "sent an answer without text" : "ended its answer without [DONE]");
        }
        return new Answer(text.toString(), prompt, tokens, start, first, last);
    }

    private KvmergeException failed(String how) {
        return new KvmergeException("the server at " + base + " " + how + "; its log may say more");
    }

    private static KvmergeException interrupted(InterruptedException e) {
        Thread.currentThread().interrupt();
        return new KvmergeException("interrupted while a server answered", e);
    }

    @Override
    public void close() {
        http.close();
    }
}
