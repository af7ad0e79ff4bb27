package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

@Tag("fast")
class ReportTest {
    @TempDir
    Path folder;

    private static final long MIB = 1 << 20;

    private static RunResult run(String name, double compression, Double perplexity, Double kl, double speed) {
        return new RunResult(
                name,
                Map.of("sinks", 4),
                100,
                compression,
                1000,
                900,
                perplexity,
                0.5,
                20.0,
                kl,
                kl == null ? null : 0.001,
                kl,
                0.93,
                compression == 0 ? 94 * MIB / 10 : 31 * MIB / 10,
                94 * MIB / 10,
                256,
                compression == 0 ? null : 5 * MIB,
                null,
                2.0,
                1.5,
                0.1,
                0.1,
                0.1,
                speed,
                "off",
                null,
                null,
                null,
                name);
    }

    private static final RunResult FULL = run("full", 0, 20.0, null, 100);
    private static final RunResult OURS = run("entropy-merged", 0.7, 20.32, 0.019, 120);

    @Test
    void aRunReadsLikeASentence() {
        assertEquals(
                "entropy-merged, 70 % fewer cells: +1.6 % perplexity, KL .0190, 3.1 MiB and 5.0 of tables instead of "
                        + "9.4, 1.20 x the speed",
                Table.sentence(OURS, FULL));
        RunResult bare = new RunResult(
                "h2o", Map.of(), 100, 0.7, 1000, 900, null, null, null, null, null, null, null, null, null, null, null,
                null, null, null, null, null, null, null, null, null, null, null, null);
        assertTrue(Table.of(List.of(FULL, OURS, bare)).contains("h2o"), "what lacks figures still has its row");
    }

    /** Without it, the command would capture queries. */
    @Test
    void theCommandStopsTheGraphAgain() {
        RunResult stopped = new RunResult(
                "h2o", Map.of(), 100, 0.7, 1000, 900, null, null, null, null, null, null, null, null, null, null, null,
                null, null, null, null, null, null, null, "on", null, "stop", null, "h2o");
        String command = CommandLine.of(new Report(
                new Report.Versions("0.1.0", "0.5.0", "25"),
                new Report.Machine("cpu", 2, "avx2", "cpu", null),
                new Report.ModelInfo("m.gguf", "abc", "llama", "llama 1B Q4_0", 2, 4, 2, 64, "Q4_0"),
                new Report.TextInfo("t.txt", "def", 0),
                new Report.Settings(1000, "stream", 64, 2, "on", "f16", "f16", null),
                null,
                List.of(FULL, stopped)));
        assertTrue(command.contains(" -fa on --observe stop -ctk "), command);
    }

    @Test
    void theCommandHasTheDeviceAndWhatWasGiven() {
        String command = CommandLine.of(new Report(
                new Report.Versions("0.1.0", "0.5.0", "25"),
                new Report.Machine("cpu", 2, "avx2", "cuda", "H100"),
                new Report.ModelInfo("m.gguf", "abc", "llama", "llama 1B Q4_0", 2, 4, 2, 64, "Q4_0"),
                new Report.TextInfo("t.txt", "def", 0),
                new Report.Settings(1000, "stream", 64, 2, "off", "f16", "f16", null),
                Map.of("--fill", ""),
                List.of(FULL, OURS)));
        assertEquals(
                "bin/kvmerge experiment -m m.gguf --device cuda -f t.txt --offset 0 --tokens 1000 --block 64 --fill",
                command);
    }

    @Test
    void theBestIsComparedWithTheOthersOnTheSameTokens() {
        RunResult other = run("h2o", 0.7, 20.5, 0.03, 110);
        double[] zeros = new double[1000];
        double[] more = new double[1000];
        java.util.Arrays.fill(more, 0.01);
        more[200] = 0.02;
        Trace ours = new Trace(zeros, zeros, new boolean[1000]);
        Trace theirs = new Trace(zeros, more, new boolean[1000]);
        String text = Table.comparisons(List.of(FULL, other, OURS), Map.of(OURS.id(), ours, other.id(), theirs));
        assertTrue(
                text.startsWith("entropy-merged against h2o, 70 % fewer cells: KL -0.0100 +/- 0.0000, perplexity"),
                text);
        assertEquals("", Table.comparisons(List.of(FULL, other, OURS), Map.of()));
    }

    @Test
    void resultsComeBackAsTheyWere() throws IOException {
        Report report = new Report(
                new Report.Versions("0.1.0", "0.5.0", "25"),
                new Report.Machine("cpu", 2, "avx2", "cpu", null),
                new Report.ModelInfo("m.gguf", "abc", "llama", "llama 1B Q4_0", 2, 4, 2, 64, "Q4_0"),
                new Report.TextInfo("t.txt", "def", 0),
                new Report.Settings(1000, "stream", 64, 2, "off", "f16", "f16", null),
                Map.of("--sinks", "2"),
                List.of(FULL, OURS));
        Trace trace = new Trace(
                new double[] {Double.NaN, 1.25, 3e-9},
                new double[] {Double.NaN, Double.NaN, 0.5},
                new boolean[] {false, false, true});
        try (ResultsFolder results = ResultsFolder.open(folder)) {
            results.write(report);
            results.writeTrace("x", trace);
            assertEquals(report, results.read());
            Trace back = results.readTrace("x", 3);
            assertArrayEquals(trace.nll(), back.nll());
            assertArrayEquals(trace.kl(), back.kl());
            assertArrayEquals(trace.sameTop(), back.sameTop());
            assertNull(results.readTrace("x", 4), "a trace of another length is none");
            assertNull(results.readTrace("y", 3));
        }
        try (Stream<Path> files = Files.walk(folder)) {
            assertTrue(files.noneMatch(f -> f.toString().endsWith(".part")), "nothing half written stays");
        }
        String json = Files.readString(folder.resolve("results.json"));
        assertTrue(
                json.contains("\"kl_mean\" : null")
                        && json.contains("\"top1_agreement\" : 0.93")
                        && json.contains("\"peak_rss_bytes\" : null"),
                json);
        assertEquals(
                "full,{sinks=4},100,0.0,1000,900,20.0,0.5,20.0,,,,0.93,9856614,9856614,256,,,2.0,1.5,0.1,0.1,0.1,100.0,"
                        + "off,,,,full",
                Files.readAllLines(folder.resolve("results.csv")).get(1));
    }

    @Test
    void plotsAreDrawnFromWhatThereIs() {
        Trace trace = new Trace(new double[2000], new double[2000], new boolean[2000]);
        Map<String, String> plots = Plots.of(List.of(FULL, OURS), Map.of("full", trace, OURS.id(), trace));
        assertEquals(
                List.of(
                        "perplexity.svg",
                        "kl.svg",
                        "speed.svg",
                        "memory.svg",
                        "running-perplexity.svg",
                        "kl-along-text.svg"),
                List.copyOf(plots.keySet()));
        plots.forEach((name, svg) -> assertTrue(svg.startsWith("<?xml") && svg.contains("</svg>"), name));
        assertTrue(Plots.of(List.of(FULL), Map.of()).isEmpty());
    }
}
