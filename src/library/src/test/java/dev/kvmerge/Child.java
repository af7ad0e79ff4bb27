package dev.kvmerge;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** Runs a class in a JVM of its own: what it does to the process is not done to the tests'. */
public final class Child {
    private Child() {}

    /** The command that runs a class's main. */
    public static List<String> command(List<String> jvmOptions, Class<?> main, String... arguments) {
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-XX:-CreateCoredumpOnCrash",
                "-Xmx256m",
                "--enable-native-access=ALL-UNNAMED",
                "-Dkvmerge.home=" + TestModel.HOME,
                "-cp",
                System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"))));
        command.addAll(1, jvmOptions);
        command.add(main.getName());
        command.addAll(List.of(arguments));
        return command;
    }

    /** How it ended. */
    public record Result(int code, String output) {}

    public static Result run(Path folder, List<String> jvmOptions, Class<?> main, String... arguments)
            throws IOException, InterruptedException {
        Process process = new ProcessBuilder(command(jvmOptions, main, arguments))
                .directory(folder.toFile()) // where a JVM that crashes writes its report
                .redirectErrorStream(true)
                .start();
        process.getOutputStream().close();
        String output = new String(process.getInputStream().readAllBytes());
        return new Result(process.waitFor(), output);
    }
}
