package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.SmallVocabulary;
import dev.kvmerge.TestModel;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Killed, stopped, out of space, twice at once: what is finished stays, nothing is half, and --resume ends as if
 * nothing had been.
 */
@Tag("model")
class FaultsTest {
    /** Random moments at which an experiment is killed; 'make faults' tries a hundred. */
    private static final int KILLS = Integer.getInteger("kvmerge.faults.kills", 8);

    private static final int TOKENS = 480;

    @TempDir
    static Path models;

    @TempDir
    Path folder;

    private static String[] experiment;
    private static Map<String, String> expected; // what an undisturbed experiment leaves
    private static long undisturbedMillis;

    @BeforeAll
    static void undisturbed(@TempDir Path out) throws IOException, InterruptedException {
        TestModel.library();
        Path model = SmallVocabulary.write(models.resolve("small.gguf"), true, true, false);
        StringBuilder text = new StringBuilder();
        Random random = new Random(5);
        while (text.length() < 8 * TOKENS) {
            text.append(random.nextBoolean() ? "the old house is " : "number " + random.nextInt(100) + ".\n");
        }
        Path book = Files.writeString(models.resolve("book.txt"), text);
        experiment = new String[] {
            "experiment",
            "-m",
            model.toString(),
            "-f",
            book.toString(),
            "-t",
            "1",
            "--tokens",
            "" + TOKENS,
            "--block",
            "32",
            "--strategies",
            "streaming-llm,h2o,entropy-merged,knorm,snapkv",
            "--compression",
            "0.5,0.6"
        };
        long start = System.nanoTime();
        start(out).ended(0);
        undisturbedMillis = (System.nanoTime() - start) / 1_000_000;
        expected = left(out);
    }

    private static Child start(Path out, String... more) throws IOException {
        return Child.java(List.of("-XX:TieredStopAtLevel=1"), Map.of(), arguments(out, more));
    }

    private static String[] arguments(Path out, String... more) {
        List<String> arguments = new ArrayList<>(List.of(experiment));
        arguments.addAll(List.of("--out", out.toString()));
        arguments.addAll(List.of(more));
        return arguments.toArray(String[]::new);
    }

    /** Every file of a folder, without what differs from run to run: times, and plots of them. */
    private static Map<String, String> left(Path out) throws IOException {
        Map<String, String> files = new TreeMap<>();
        try (Stream<Path> all = Files.walk(out)) {
            for (Path file : all.filter(Files::isRegularFile).toList()) {
                String name = out.relativize(file).toString();
                files.put(
                        name,
                        name.equals("results.json")
                                ? withoutTimes(file)
                                : name.startsWith("traces/") ? Files.readString(file) : "");
            }
        }
        return files;
    }

    private static String withoutTimes(Path results) throws IOException {
        JsonNode root = new ObjectMapper().readTree(results.toFile());
        for (JsonNode run : root.get("runs")) {
            List<String> names = new ArrayList<>();
            run.fieldNames().forEachRemaining(names::add);
            names.removeIf(
                    n -> !n.startsWith("seconds_") && !n.equals("tokens_per_second") && !n.equals("peak_rss_bytes"));
            ((ObjectNode) run).remove(names);
        }
        return root.toPrettyString();
    }

    private void resumes(Path out, String when) throws IOException, InterruptedException {
        String text = start(out, "--resume").ended(0);
        Map<String, String> files = left(out);
        assertEquals(expected.keySet(), files.keySet(), when + "\n" + text);
        expected.forEach((name, content) -> assertEquals(content, files.get(name), when + ": " + name));
    }

    @Test
    void killedAtRandomMoments() throws IOException, InterruptedException {
        long seed = Long.getLong("kvmerge.faults.seed", System.nanoTime());
        System.out.println("FaultsTest: " + KILLS + " kills, seed " + seed);
        Random random = new Random(seed);
        int withResults = 0;
        long most = undisturbedMillis; // an experiment may take less than the first did
        for (int killed = 0, i = 0; killed < KILLS; i++) {
            Path out = folder.resolve("killed-" + i);
            long start = System.nanoTime();
            Child child = start(out);
            long millis = most / 5 + random.nextLong(most);
            boolean ended = child.process().waitFor(millis, TimeUnit.MILLISECONDS);
            child.process().destroyForcibly();
            child.text();
            if (ended) { // before its moment: no kill
                most = Math.max(100, Math.min(most, (System.nanoTime() - start) / 1_000_000));
                continue;
            }
            killed++;
            withResults += Files.exists(out.resolve("results.json")) ? 1 : 0;
            resumes(out, "seed " + seed + ", kill " + i + " after " + millis + " ms");
        }
        System.out.println(
                "FaultsTest: killed " + KILLS + " times, " + withResults + " times with finished runs on disk");
    }

    private Child startedAndWithARun(Path out) throws IOException, InterruptedException {
        Child child = start(out);
        while (child.process().isAlive() && !Files.exists(out.resolve("results.json"))) {
            Thread.sleep(5);
        }
        return child;
    }

    @Test
    void stoppedBySignal() throws IOException, InterruptedException {
        for (String[] signal : new String[][] {{"TERM", "143"}, {"INT", "130"}, {"HUP", "129"}}) {
            Path out = folder.resolve(signal[0]);
            Child child = startedAndWithARun(out);
            new ProcessBuilder("kill", "-" + signal[0], "" + child.process().pid())
                    .start()
                    .waitFor();
            String text = child.text();
            assertEquals(Integer.parseInt(signal[1]), child.process().exitValue(), text);
            assertTrue(text.contains("go on with --resume"), text);
            assertFalse(text.contains("did not end"), text);
            try (Stream<Path> files = Files.walk(out)) {
                assertTrue(files.noneMatch(f -> f.toString().endsWith(".part")), signal[0]);
            }
            resumes(out, signal[0]);
        }
    }

    /** A limit on the size of files fails the same writes as a full disk, and needs no rights. */
    @Test
    void outOfSpace() throws IOException, InterruptedException {
        Path out = folder.resolve("full");
        List<String> command = new ArrayList<>(List.of(
                "ulimit -f 60; exec \"$@\"",
                "sh",
                Path.of(System.getProperty("java.home"), "bin/java").toString()));
        command.addAll(List.of(
                "-XX:-UsePerfData",
                "--enable-native-access=ALL-UNNAMED",
                "-Dkvmerge.home=" + TestModel.HOME,
                "-cp",
                System.getProperty("java.class.path"),
                "dev.kvmerge.cli.Main"));
        command.addAll(List.of(arguments(out)));
        String text = Child.shell(command).ended(1);
        assertTrue(text.contains("free space") && text.contains("--out"), text);
        assertFalse(text.contains("\tat "), text);
        assertFalse(Files.exists(out), "nothing came of it, and the disk would stay full");
        resumes(out, "out of space");
    }

    /** What is printed is lost on a full disk, and where the reader of a pipe has gone: neither is success. */
    @Test
    void outputThatNobodyGets() throws IOException, InterruptedException {
        String kvmerge =
                "'%s/bin/java' --enable-native-access=ALL-UNNAMED -Dkvmerge.home='%s' -cp '%s' dev.kvmerge.cli.Main"
                        .formatted(
                                System.getProperty("java.home"), TestModel.HOME, System.getProperty("java.class.path"));
        for (String command : List.of("--version", "models", "experiment --help")) {
            String text = Child.shell(kvmerge + " " + command + " > /dev/full", Map.of())
                    .ended(1);
            assertTrue(text.contains("kvmerge: standard output cannot be written"), text);
        }
        String endless =
                kvmerge + " generate -m '" + experiment[2] + "' -p old -n 1000000 --ignore-eos -c 64 --block 32 -t 1";
        String text = Child.shell("(" + endless + " || echo \"code $?\" >&2) | head -c 20 > /dev/null", Map.of())
                .ended(0);
        assertTrue(text.contains("kvmerge: standard output cannot be written") && text.contains("code 1"), text);
        assertFalse(text.contains("\tat "), text);
    }

    /** Whoever comes while another is at it is refused; whoever comes later finds everything done. */
    @Test
    void severalAtOnce() throws IOException, InterruptedException {
        Path out = folder.resolve("several");
        List<Child> children = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            children.add(start(out, "--resume"));
        }
        int succeeded = 0;
        for (Child each : children) {
            String text = each.text();
            if (each.process().exitValue() == 0) {
                succeeded++;
            } else {
                assertTrue(text.contains("another run is writing"), text);
            }
        }
        assertTrue(succeeded > 0, "one of them makes the experiment");
        assertEquals(expected, left(out));
    }
}
