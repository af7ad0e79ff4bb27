package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.Model;
import dev.kvmerge.server.KvmergeServer;
import dev.kvmerge.server.ServerOptions;
import java.io.PrintStream;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** The server. */
@Command(
        name = "serve",
        mixinStandardHelpOptions = true,
        description = {
            "Serves a model over HTTP, with the endpoints of OpenAI and llama-server, and a page to chat at /.",
            "Each of --parallel conversations has --cells KV cells, however long it gets. SIGTERM and Ctrl-C finish the"
                    + " answers that run."
        },
        footer = {
            "",
            "Example:",
            "  kvmerge serve -m smollm2-135m --cells 1024 --parallel 4 --port 8080",
            "  curl http://127.0.0.1:8080/v1/chat/completions \\",
            "      -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}'"
        })
final class ServeCommand implements Runnable {
    @Spec
    private CommandSpec command;

    @Mixin
    private EngineSettings engine;

    @Option(
            names = "--cells",
            paramLabel = "N",
            defaultValue = "2048",
            description = "KV cells of a conversation (default: ${DEFAULT-VALUE})")
    private int cells;

    @Option(
            names = {"-np", "--parallel"},
            paramLabel = "N",
            defaultValue = "1",
            description = "conversations at once, each with cells of its own (default: ${DEFAULT-VALUE})")
    private int parallel;

    @Option(
            names = "--host",
            paramLabel = "HOST",
            defaultValue = "127.0.0.1",
            description = "address to listen on (default: ${DEFAULT-VALUE})")
    private String host;

    @Option(
            names = "--port",
            paramLabel = "N",
            defaultValue = "8080",
            description = "port to listen on; 0 for any that is free (default: ${DEFAULT-VALUE})")
    private int port;

    @Option(
            names = {"-a", "--alias"},
            paramLabel = "NAME",
            description = "the model's name in answers (default: its file's)")
    private String alias;

    @Option(
            names = "--api-key",
            paramLabel = "KEY",
            split = ",",
            description = "keys of which a request must give one; all but /health and the page's files asks for it")
    private List<String> keys = new ArrayList<>();

    @Option(names = "--api-key-file", paramLabel = "FILE", description = "the same, one a line")
    private Path keyFile;

    @Option(
            names = "--cors-origin",
            paramLabel = "ORIGIN",
            split = ",",
            description =
                    "origins of other web pages that may ask, as https://chat.example, or * for all (default: none"
                            + " may)")
    private List<String> origins = new ArrayList<>();

    @Option(
            names = {"-to", "--timeout"},
            paramLabel = "SECONDS",
            defaultValue = "600",
            description = "most time that a request waits for a conversation to be free, and most that its answer takes"
                    + " (default: ${DEFAULT-VALUE})")
    private int timeout;

    @Option(
            names = {"-c", "--ctx-size"},
            paramLabel = "N",
            defaultValue = "0",
            description = "most tokens of a conversation; 0 for as many as the model was trained on (default: "
                    + "${DEFAULT-VALUE})")
    private int context;

    @Option(
            names = {"-n", "--predict"},
            paramLabel = "N",
            defaultValue = "-1",
            description = "tokens of an answer whose request sets no limit; -1 for as many as fit (default: "
                    + "${DEFAULT-VALUE})")
    private int predict;

    @Option(
            names = "--queue",
            paramLabel = "N",
            defaultValue = "64",
            description = "most requests that wait; the next is told to come back (default: ${DEFAULT-VALUE})")
    private int queue;

    @Option(
            names = "--max-body",
            paramLabel = "MIB",
            defaultValue = "16",
            description = "most MiB of a request (default: ${DEFAULT-VALUE})")
    private int body;

    @Option(
            names = "--max-messages",
            paramLabel = "N",
            defaultValue = "4096",
            description = "most messages of a conversation (default: ${DEFAULT-VALUE})")
    private int messages;

    @Option(
            names = "--slot-save-path",
            paramLabel = "DIR",
            description = "where POST /slots/N?action=save writes (default: it is refused)")
    private Path slotFiles;

    @Option(
            names = "--metrics",
            negatable = true,
            defaultValue = "true",
            fallbackValue = "true",
            description = "whether GET /metrics answers (default: it does)")
    private boolean metrics;

    @Option(
            names = "--slots",
            negatable = true,
            defaultValue = "true",
            fallbackValue = "true",
            description = "whether GET /slots answers (default: it does)")
    private boolean slots;

    @Override
    public void run() {
        ServerOptions options = options();
        EngineSettings.Loaded loaded = engine.load(command, cells, parallel);
        KvmergeServer server = start(loaded, options);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> end(server, loaded.model(), options.timeout())));
        System.out.println("kvmerge: serving at " + server.url());
        System.out.flush();
        try {
            new CountDownLatch(1).await(); // until a signal
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private static KvmergeServer start(EngineSettings.Loaded loaded, ServerOptions options) {
        try {
            return KvmergeServer.start(loaded.engine(), options);
        } catch (RuntimeException e) {
            loaded.close();
            throw e;
        }
    }

    /** A signal came: the exit code says that all went as it should, which the JVM's own for a signal does not. */
    private static void end(KvmergeServer server, Model model, Duration patience) {
        System.err.println("kvmerge: finishing what runs, and taking nothing new");
        try {
            finish(System.err, () -> server.drain(patience), server::close, model::close);
        } finally {
            Runtime.getRuntime().halt(0);
        }
    }

    /**
     * Does one step after the other. What one throws is told, and the next is done all the same: a request that needs
     * no slot, as /tokenize, may still use the model.
     */
    static void finish(PrintStream err, Runnable... steps) {
        for (Runnable step : steps) {
            try {
                step.run();
            } catch (RuntimeException e) {
                err.println("kvmerge: " + e.getMessage());
            }
        }
    }

    private ServerOptions options() {
        if (body < 1 || body > 1024) {
            throw new KvmergeException.Usage("--max-body must be 1 to 1024 MiB, not " + body);
        }
        return new ServerOptions(
                host,
                port,
                alias,
                keys(),
                origins,
                parallel,
                queue,
                Duration.ofSeconds(timeout),
                context,
                predict,
                Math.min(body << 20, Integer.MAX_VALUE - 8),
                messages,
                slotFiles,
                metrics,
                slots);
    }

    private List<String> keys() {
        List<String> all = new ArrayList<>(keys);
        if (keyFile != null) {
            SamplingOptions.text("--api-key-file", keyFile)
                    .lines()
                    .map(String::strip)
                    .filter(line -> !line.isEmpty())
                    .forEach(all::add);
            if (all.isEmpty()) {
                throw new KvmergeException.Usage("--api-key-file " + keyFile + " has no key: anybody could ask");
            }
        }
        return all;
    }
}
