package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvmerge.TestModel;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Runs the command line in a process of its own, where this one could not survive or would not show what is tested. */
final class Child {
    private final Process process;
    private final Path log;

    private Child(Process process, Path log) {
        this.process = process;
        this.log = log;
    }

    /** Starts it on this process's classes. */
    static Child java(List<String> options, Map<String, String> environment, String... args) throws IOException {
        List<String> command = new ArrayList<>(
                List.of(Path.of(System.getProperty("java.home"), "bin/java").toString()));
        command.addAll(options);
        command.addAll(List.of(
                "-XX:+UseSerialGC",
                "--enable-native-access=ALL-UNNAMED",
                "-Dkvmerge.home=" + TestModel.HOME,
                "-cp",
                System.getProperty("java.class.path"),
                "dev.kvmerge.cli.Main"));
        command.addAll(List.of(args));
        return start(command, environment);
    }

    /** Starts a shell script. */
    static Child shell(String script, Map<String, String> environment) throws IOException {
        return start(List.of("sh", "-ec", script), environment);
    }

    /** Starts a shell script with its arguments, the first of which is its name. */
    static Child shell(List<String> scriptAndArguments) throws IOException {
        List<String> command = new ArrayList<>(List.of("sh", "-ec"));
        command.addAll(scriptAndArguments);
        return start(command, Map.of());
    }

    /**
     * The same command where signals end a process: a shell's background jobs, and what nohup starts, ignore SIGINT and
     * SIGHUP, and so would their children.
     */
    static List<String> withSignals(List<String> command) {
        List<String> started = new ArrayList<>(List.of("env", "--default-signal=INT,HUP,TERM"));
        started.addAll(command);
        return started;
    }

    private static Child start(List<String> command, Map<String, String> environment) throws IOException {
        Path log = Files.createTempFile("kvmerge-child", ".log");
        ProcessBuilder builder = new ProcessBuilder(withSignals(command))
                .redirectErrorStream(true)
                .redirectOutput(log.toFile());
        builder.environment().putAll(environment);
        return new Child(builder.start(), log);
    }

    Process process() {
        return process;
    }

    /** What it printed, once it has ended. */
    String text() throws IOException, InterruptedException {
        process.waitFor();
        try {
            return Files.readString(log);
        } finally {
            Files.delete(log);
        }
    }

    String ended(int code) throws IOException, InterruptedException {
        int ended = process.waitFor();
        String text = text();
        assertEquals(code, ended, text);
        return text;
    }
}
