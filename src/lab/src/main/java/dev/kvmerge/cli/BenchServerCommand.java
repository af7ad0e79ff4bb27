package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.ServerBench;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.report.ServerTable;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.URI;
import java.net.URISyntaxException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Speed of 'kvmerge serve' beside llama-server. */
@Command(
        name = "bench-server",
        mixinStandardHelpOptions = true,
        description = {
            "Times llama-server and 'kvmerge serve': starts both, sends the same conversations to each in turns, one "
                    + "and "
                    + "several at once, and prints the time to the first token and tokens a second, as medians over "
                    + "turns.",
            "'make llama-server' builds the llama-server that is started. Other servers with OpenAI's protocol can be "
                    + "named with --server; ratios are to the first."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge bench-server --prompt-characters 8000 --cells 1024",
            "  kvmerge bench-server --server a=http://127.0.0.1:8080 \\",
            "      --server 'b=llama-server -m model.gguf --port {port}'"
        })
final class BenchServerCommand implements Runnable {
    private static final long PATIENCE_NANOS = TimeUnit.MINUTES.toNanos(5);
    private static final long REAP_NANOS = TimeUnit.SECONDS.toNanos(15); // less than Interrupt's patience
    private static final long LOOK_MILLIS = 100;
    private static final int ROOM = 200; // tokens of a conversation beside its first message and the two answers
    private static final double CHARACTERS = 3.5; // a token, at least, of English

    @Spec
    private CommandSpec command;

    @Option(
            names = {"-m", "--model"},
            paramLabel = "MODEL",
            defaultValue = "smollm2-135m",
            description = "a GGUF file, or a name from 'kvmerge models' (default: ${DEFAULT-VALUE})")
    private String model;

    @Option(
            names = {"-t", "--threads"},
            paramLabel = "N",
            description = "CPU threads of each server (default: all cores)")
    private Integer threads;

    @Mixin
    private TextOptions text;

    @Option(
            names = "--prompt-characters",
            paramLabel = "N",
            defaultValue = "8000",
            description = "length of a conversation's first message, about four a token (default: ${DEFAULT-VALUE})")
    private int characters;

    @Option(
            names = {"-n", "--n-gen"},
            paramLabel = "N",
            defaultValue = "64",
            description = "tokens of an answer (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--at-once",
            paramLabel = "N",
            split = ",",
            defaultValue = "1,8",
            description = "conversations side by side (default: ${DEFAULT-VALUE})")
    private int[] atOnce;

    @Option(
            names = {"-r", "--repetitions"},
            paramLabel = "N",
            defaultValue = "5",
            description = "turns (default: ${DEFAULT-VALUE})")
    private int turns;

    @Option(
            names = "--cells",
            paramLabel = "N",
            defaultValue = "1024",
            description = "cells of each of kvmerge's conversations (default: ${DEFAULT-VALUE})")
    private int cells;

    @Option(names = "--llama-server", paramLabel = "FILE", description = "(default: what 'make llama-server' builds)")
    private Path llamaServer;

    @Option(
            names = "--server",
            paramLabel = "NAME=COMMAND|NAME=URL",
            description =
                    "instead of both: a server to start, {port} for its port and {model} for the model's file, or "
                            + "one that is up")
    private Map<String, String> others = new LinkedHashMap<>();

    @Option(
            names = "--out",
            paramLabel = "DIR",
            defaultValue = "results/bench-server",
            description = "where the servers' logs go (default: ${DEFAULT-VALUE})")
    private Path out;

    @Override
    public void run() {
        check();
        Catalogue catalogue = Home.catalogue();
        Text source = text.read(catalogue);
        String words = source.content().replaceAll("\\s+", " ").strip();
        if (words.length() < characters) {
            throw new KvmergeException.Usage("--prompt-characters " + characters + " is more than the text "
                    + source.path() + " has, " + words.length() + ": give another with -f");
        }
        Map<String, String> commands = others.isEmpty() ? both(catalogue) : others;
        Interrupt.listen("kvmerge: stopping after the requests under way; nothing was written");
        List<Process> started = new CopyOnWriteArrayList<>();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> reap(started)));
        try (ResultsFolder folder = ResultsFolder.open(out)) {
            double load = ManagementFactory.getOperatingSystemMXBean().getSystemLoadAverage();
            List<ServerBench.Server> servers = new ArrayList<>();
            commands.forEach((name, command) -> servers.add(up(name, command, catalogue, folder, started)));
            ServerBench.Setup setup = new ServerBench.Setup(words, characters, tokens, atOnce, turns);
            List<ServerBench.Row> rows;
            try (Progress progress = new Progress("bench-server");
                    ServerBench bench = new ServerBench(servers, setup)) {
                rows = bench.run(what -> progress.update(-1, what), Interrupt::requested);
            }
            print(commands, rows, load);
        } finally {
            started.forEach(Process::destroy);
            started.forEach(BenchServerCommand::waitFor);
        }
    }

    private void check() {
        if (characters < 100 || tokens < 2 || turns < 1 || Arrays.stream(atOnce).anyMatch(n -> n < 1)) {
            throw new KvmergeException.Usage(
                    "--prompt-characters must be 100 and more, -n 2 and more, -r and --at-once positive");
        }
        Least.of("--cells", cells, 1);
        if (threads != null) {
            ModelOptions.checkThreads(threads);
        }
        int most = most();
        if (most > ContextOptions.MOST_SEQUENCES) {
            throw new KvmergeException.Usage(
                    "--at-once can be " + ContextOptions.MOST_SEQUENCES + " at most, not " + most);
        }
        if (others.isEmpty()) {
            if (most * context() > ContextOptions.MOST_CELLS) {
                throw new KvmergeException.Usage("no context holds " + most + " conversations of " + context()
                        + " tokens: use a smaller -n, --prompt-characters or --at-once");
            }
            return;
        }
        StrategyOptions.refuse(command, List.of("-t", "--cells", "--llama-server"), "goes without --server");
        if (!namesModel()) {
            StrategyOptions.refuse(command, List.of("-m"), "goes with {model} in a --server");
        }
    }

    private int most() {
        return Arrays.stream(atOnce).max().orElseThrow();
    }

    /** Tokens of a conversation. */
    private long context() {
        return (long) Math.ceil(characters / CHARACTERS) + 2L * tokens + ROOM;
    }

    /** Whether it is this command's model that is served, as far as is known. */
    private boolean namesModel() {
        return others.isEmpty() || others.values().stream().anyMatch(c -> c.contains("{model}"));
    }

    /** llama-server with as many tokens of context as the conversations have, and kvmerge with its cells. */
    private Map<String, String> both(Catalogue catalogue) {
        Path server = llamaServer != null
                ? llamaServer
                : Home.path().resolve("build/llama-server/bin/llama-server").toAbsolutePath();
        if (!server.toFile().canExecute()) {
            throw new KvmergeException.Usage("no llama-server at " + server
                    + ": build it with 'make llama-server', or give one with --llama-server");
        }
        int most = most();
        int n = threads == null ? Runtime.getRuntime().availableProcessors() : threads;
        Map<String, String> commands = new LinkedHashMap<>();
        commands.put(
                "llama-server",
                server + " -m {model} --host 127.0.0.1 --port {port} -t " + n + " -np " + most + " -c "
                        + most * context());
        commands.put(
                "kvmerge",
                Home.path().resolve("bin/kvmerge").toAbsolutePath() + " serve -m {model} --host 127.0.0.1 --port {port}"
                        + " -t " + n + " --parallel " + most + " --cells " + cells + " --llama-lib "
                        + server.getParent());
        return commands;
    }

    private ServerBench.Server up(
            String name, String command, Catalogue catalogue, ResultsFolder folder, List<Process> started) {
        if (command.startsWith("http://") || command.startsWith("https://")) {
            URI base = uri(name, command);
            if (!ServerBench.isReady(base)) {
                throw new KvmergeException("no server is ready at " + base + ": its /health does not answer 200");
            }
            return new ServerBench.Server(name, base);
        }
        int port = freePort();
        Path log = folder.path().resolve(name + ".log").toAbsolutePath();
        List<String> words = Arrays.stream(command.strip().split("\\s+"))
                .map(word -> word.replace("{port}", Integer.toString(port)))
                .map(word -> word.equals("{model}")
                        ? catalogue
                                .resolve(model, Catalogue.Kind.MODEL)
                                .toAbsolutePath()
                                .toString()
                        : word)
                .toList();
        Process process;
        try {
            process = new ProcessBuilder(words)
                    .redirectErrorStream(true)
                    .redirectOutput(log.toFile())
                    .start();
        } catch (IOException e) {
            throw new KvmergeException("cannot start the server '" + name + "': " + e.getMessage(), e);
        }
        started.add(process);
        URI base = URI.create("http://127.0.0.1:" + port);
        long start = System.nanoTime();
        while (!ServerBench.isReady(base)) {
            if (!process.isAlive() || System.nanoTime() - start > PATIENCE_NANOS || Interrupt.requested()) {
                throw new KvmergeException("the server '" + name + "' "
                        + (process.isAlive() ? "is not ready" : "has ended") + ": " + log + " may say why");
            }
            sleep();
        }
        return new ServerBench.Server(name, base);
    }

    private static URI uri(String name, String url) {
        try {
            URI uri = new URI(url);
            if (uri.getHost() != null) {
                return uri;
            }
        } catch (URISyntaxException e) {
            // as without a host
        }
        throw new KvmergeException.Usage(
                "--server " + name + "=" + url + " is no URL of a server: give one as http://127.0.0.1:8080");
    }

    private static int freePort() {
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return socket.getLocalPort();
        } catch (IOException e) {
            throw new KvmergeException("no port is free for a server: " + e.getMessage(), e);
        }
    }

    private static void sleep() {
        try {
            Thread.sleep(LOOK_MILLIS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new KvmergeException("interrupted while a server started", e);
        }
    }

    private static void waitFor(Process process) {
        try {
            if (!process.waitFor(30, TimeUnit.SECONDS)) {
                process.destroyForcibly();
            }
        } catch (InterruptedException e) {
            process.destroyForcibly();
            Thread.currentThread().interrupt();
        }
    }

    /** Where the JVM ends before the requests under way, no server is left behind. */
    private static void reap(List<Process> started) {
        long start = System.nanoTime();
        while (started.stream().anyMatch(Process::isAlive) && System.nanoTime() - start < REAP_NANOS) {
            sleep();
        }
        started.forEach(Process::destroyForcibly);
    }

    private void print(Map<String, String> commands, List<ServerBench.Row> rows, double load) {
        int cores = Runtime.getRuntime().availableProcessors();
        System.out.printf(
                Locale.ROOT,
                "%n%sfirst messages of %,d characters, answers of %d tokens, %d turns, %s, %d cores%n%n",
                namesModel() ? model + ", " : "",
                characters,
                tokens,
                turns,
                Provenance.cpu(),
                cores);
        commands.forEach((name, command) -> System.out.println(name + ": " + command));
        System.out.println();
        System.out.print(ServerTable.of(rows));
        if (load > cores / 2.0) {
            System.out.printf(
                    Locale.ROOT,
                    "%nThe machine was busy (load %.1f on %d cores): run this again on a quiet one.%n",
                    load,
                    cores);
        }
    }
}
