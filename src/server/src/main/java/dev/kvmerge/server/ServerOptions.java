package dev.kvmerge.server;

import dev.kvmerge.KvmergeException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Locale;

/**
 * How to serve. The names are llama-server's options where it has them.
 *
 * @param host --host: the address to listen on
 * @param port --port; 0 for any that is free
 * @param alias --alias: the model's name; null for its file's
 * @param apiKeys --api-key: one of them must be given; empty for none
 * @param origins --cors-origin: origins of other pages that may ask, as https://chat.example, or *; empty for none
 * @param slots --parallel: conversations at once
 * @param queue --queue: most requests that wait for a slot
 * @param timeout --timeout: most time that a request may wait for a slot, and most that its answer may take
 * @param context --ctx-size: most tokens of a prompt and its answer; 0 for the positions that the model was trained on
 * @param predict --predict: tokens of an answer whose request names no limit; -1 for as many as the context has
 * @param body --max-body: most bytes of a request
 * @param messages --max-messages: most messages of a conversation
 * @param slotFiles --slot-save-path: folder of saved slots; null where none may be saved
 * @param metrics --metrics: whether there is /metrics
 * @param showSlots --slots: whether there is /slots
 */
public record ServerOptions(
        String host,
        int port,
        String alias,
        List<String> apiKeys,
        List<String> origins,
        int slots,
        int queue,
        Duration timeout,
        int context,
        int predict,
        int body,
        int messages,
        Path slotFiles,
        boolean metrics,
        boolean showSlots) {
    public ServerOptions {
        apiKeys = List.copyOf(apiKeys);
        origins = origins.stream().map(o -> o.toLowerCase(Locale.ROOT)).toList();
        check(port >= 0 && port <= 65535, "--port must be 0 to 65535, not " + port);
        check(slots >= 1, "--parallel must be positive, not " + slots);
        check(queue >= 0, "--queue must not be negative, as " + queue + " is");
        check(timeout.isPositive(), "--timeout must be positive, not " + timeout.toSeconds());
        check(context >= 0, "--ctx-size must not be negative, as " + context + " is; 0 is the model's");
        check(predict >= -1, "--predict must be -1 (as many as the context has) or more, not " + predict);
        check(body >= 1, "--max-body must be positive, not " + body);
        check(messages >= 1, "--max-messages must be positive, not " + messages);
        check(
                apiKeys.stream().noneMatch(String::isBlank),
                "--api-key: a key is empty, which everybody knows: give another");
        origins.forEach(origin -> check(
                origin.matches("\\*|https?://[^/\\s]+"),
                "--cors-origin '" + origin + "' is none: give a page's scheme, host and port, as https://chat.example,"
                        + " or * for every page"));
        check(
                slotFiles == null || Files.isDirectory(slotFiles),
                "--slot-save-path " + slotFiles + " is not a folder: make it, or name another");
    }

    /** llama-server's defaults: 127.0.0.1:8080, one slot, no keys. */
    public static ServerOptions usual() {
        return new ServerOptions(
                "127.0.0.1",
                8080,
                null,
                List.of(),
                List.of(),
                1,
                64,
                Duration.ofSeconds(600),
                0,
                -1,
                16 << 20,
                4096,
                null,
                true,
                true);
    }

    private static void check(boolean right, String message) {
        if (!right) {
            throw new KvmergeException.Usage(message);
        }
    }
}
