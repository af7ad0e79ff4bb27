package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.Ruler;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The page of RULER's tasks and of facts: tables, settings, the command, plots; and what cannot be shown. */
@Tag("fast")
class HtmlReportTest {
    @TempDir
    Path root;

    private static final Report.Versions VERSIONS = new Report.Versions("0.1.0", "0.5.0", "25");
    private static final Report.Machine MACHINE = new Report.Machine("EPYC", 2, "avx2", "cpu", null);
    private static final Report.ModelInfo MODEL =
            new Report.ModelInfo("m.gguf", "abc", "llama", "llama 1B Q4_0", 2, 4, 2, 64, "Q4_0");

    private static Ruler.Reading reading(
            int tokens, int index, String cache, String parameters, double compression, int found) {
        return new Ruler.Reading(
                new Ruler.Item("variables", tokens, index),
                cache,
                parameters,
                compression,
                tokens,
                (int) (tokens * (1 - compression)),
                1,
                List.of(new Ruler.Answer("vt", "Which?", List.of("A", "B"), "said", found)));
    }

    private static RulerReport ruler(int block, Map<String, String> options, Ruler.Reading... readings) {
        return new RulerReport(
                VERSIONS,
                MACHINE,
                MODEL,
                new Report.TextInfo("alice.txt", "def", 0),
                new RulerReport.Settings(List.of("vt"), block == Ruler.WHOLE, block, 7, 2, "off", "f16", "f16", null),
                options,
                List.of(readings));
    }

    private static FactsReport facts(Facts.Run... runs) {
        return facts(Map.of("-t", "2"), runs);
    }

    private static FactsReport facts(Map<String, String> options, Facts.Run... runs) {
        return new FactsReport(
                VERSIONS,
                MACHINE,
                MODEL,
                new FactsReport.Settings(4, 4000, 24, 128, 1, 2, "on", "q8_0", "q4_0", 32),
                options,
                List.of(runs));
    }

    /** Of four facts, the first ones known. */
    private static Facts.Run run(String cache, String parameters, int cells, int known) {
        List<Facts.Answer> answers = IntStream.range(0, 4)
                .mapToObj(i -> new Facts.Answer("pet", "?", "Rex", "Rex", i < known, i < known ? 1 : 9, 0.5))
                .toList();
        return new Facts.Run(
                cache,
                parameters,
                cells,
                4096,
                3900,
                4000,
                1,
                answers,
                List.of(new Facts.Check(300, "?", "Ahoy", true, 1, 0.1)));
    }

    private Path write(String name, RulerReport report) {
        return write(name, results -> results.write(report));
    }

    private Path write(String name, FactsReport report) {
        return write(name, results -> results.write(report));
    }

    private Path write(String name, Consumer<ResultsFolder> content) {
        Path folder = root.resolve(name);
        try (ResultsFolder results = ResultsFolder.open(folder)) {
            content.accept(results);
        }
        return folder;
    }

    private HtmlReport page(Path... folders) {
        return HtmlReport.of(root, List.of(folders));
    }

    private static int plots(HtmlReport page) {
        return page.html().split("<svg ", -1).length - 1;
    }

    @Test
    void rulerHasItsTableSettingsCommandAndAPlotOfEachLength() {
        List<Ruler.Reading> readings = new ArrayList<>();
        for (int tokens : List.of(1024, 2048)) {
            for (int index : List.of(0, 1)) {
                readings.add(reading(tokens, index, "full", "{}", 0, 2));
                readings.add(reading(tokens, index, "h2o", "{}", 0.7, index));
                readings.add(reading(tokens, index, "snapkv", "{}", 0.7, 2));
            }
        }
        HtmlReport page = page(write("tasks", ruler(128, Map.of("-t", "2"), readings.toArray(Ruler.Reading[]::new))));
        assertEquals(List.of(), page.problems());
        String text = page.markdown();
        assertTrue(text.contains("\n## tasks\n"), text);
        assertTrue(
                text.contains(
                        "RULER's tasks: llama 1B Q4_0, prose of alice.txt, questions not known, block 128, seed 7,"
                                + " 2 threads, flash attention off, cells f16/f16; kvmerge 0.1.0, llama.cpp 0.5.0,"
                                + " JDK 25, EPYC on cpu."),
                text);
        // Of the texts one has 0 of 2 answers, the other 1 of 2: 25 +/- 25 %.
        assertTrue(text.contains("\n| 2,048 | 70 % | h2o | 25.0 | 25.0 | 75.0 | 25.0 | 25.0 ± 25.0 |\n"), text);
        assertTrue(text.contains("Percent of the expected answers"), text);
        assertTrue(
                text.contains("\n    bin/kvmerge ruler -m m.gguf -f alice.txt --tasks vt --tokens 1024,2048 --texts 2"
                        + " --seed 7 -fa off -ctk f16 -ctv f16 --strategies full,h2o,snapkv --compression 0.7"
                        + " --block 128 -t 2\n"),
                text);
        assertFalse(text.contains("KL is the mean divergence"), "of experiments, and there is none");
        String html = page.html();
        assertEquals(2, plots(page));
        assertTrue(html.contains("in texts of 2,048 tokens<"), html);
        assertTrue(html.contains("<tr class=\"best\"><td>1,024</td><td>70 %</td><td>snapkv</td>"), html);
        assertTrue(html.contains("<tr><td>1,024</td><td>70 %</td><td>h2o</td>"), html);
    }

    @Test
    void plotsHaveTheTablesFigures() {
        List<Ruler.Reading> readings = List.of(
                reading(512, 0, "full", "{}", 0, 2),
                reading(512, 0, "h2o", "{}", 0.75, 0),
                reading(512, 1, "h2o", "{}", 0.75, 1),
                reading(512, 0, "h2o", "{}", 0.5, 2));
        assertEquals(
                List.of(Chart.lines(
                        "RULER's tasks in texts of 512 tokens",
                        Chart.Axis.fromZero("cells saved, %"),
                        Chart.Axis.fromZero("expected answers that were given, %"),
                        List.of(
                                line("full", 0, new double[] {0}, new double[] {100}, new double[] {Double.NaN}),
                                line("h2o", 1, new double[] {50, 75}, new double[] {100, 25}, new double[] {
                                    Double.NaN, 25
                                })))),
                AccuracyPlot.ruler(readings, List.of("vt")));
        double[] none = {Double.NaN, Double.NaN};
        assertEquals(
                Chart.lines(
                        "What is left of a conversation's facts",
                        Chart.Axis.fromZero("cells saved, %"),
                        Chart.Axis.fromZero("facts that are the likeliest of their kind, %"),
                        List.of(
                                line("h2o", 0, new double[] {50, 75}, new double[] {75, 25}, none),
                                line("full", 1, new double[] {0}, new double[] {100}, none))),
                AccuracyPlot.facts(
                        List.of(run("h2o", "{}", 1000, 1), run("h2o", "{}", 2000, 3), run("full", "{}", 0, 4))));
    }

    private static Chart.Line line(String name, int colour, double[] saved, double[] right, double[] error) {
        return new Chart.Line(name, saved, right, error, colour, 0);
    }

    /** What was stopped has means that cannot be compared. */
    @Test
    void readingsThatAreNotWholeAreNamed() {
        Ruler.Reading[] readings = {
            reading(512, 0, "full", "{}", 0, 2),
            reading(512, 0, "h2o", "{}", 0.5, 1),
            reading(512, 1, "full", "{}", 0, 2)
        };
        HtmlReport page = page(write("stopped", ruler(128, null, readings)));
        assertEquals(1, page.problems().size());
        assertTrue(page.problems().getFirst().contains("not every cache was asked"), page.problems()::toString);
        String goOn = page.problems().getFirst();
        assertTrue(goOn.contains(" --tokens 512 --texts 2 ") && goOn.endsWith("/stopped --resume'"), goOn);
        assertEquals(1, page.incomplete());
        assertTrue(page.markdown().contains("| h2o | 50.0 |"), page.markdown());
        assertTrue(
                RulerTable.isWhole(
                        List.of(readings[0], readings[1], reading(1024, 0, "full", "{}", 0, 2)), List.of("vt")),
                "each length by itself");
        assertTrue(RulerTable.isWhole(List.of(readings[0], readings[1]), List.of("vt")));
        assertFalse(RulerTable.isWhole(List.of(readings[0], readings[1]), List.of("vt", "cwe")), "a task to come");
    }

    /** A cache's name is whatever stands in the file. */
    @Test
    void namesDoNotBreakTables() {
        Ruler.Reading odd = reading(512, 0, "a|b\n<i>c", "{}", 0.5, 1);
        HtmlReport page = page(write("odd", ruler(128, null, reading(512, 0, "full", "{}", 0, 2), odd)));
        assertTrue(page.markdown().contains(" | a\\|b &lt;i>c | "), page.markdown());
        assertFalse(page.html().contains("<i>"), "nothing of it is HTML");
    }

    @Test
    void textsThatWereCompressedOnceWithKnownQuestions() {
        String text = page(write("whole", ruler(Ruler.WHOLE, null, reading(512, 0, "full", "{}", 0, 2))))
                .markdown();
        assertTrue(text.contains("questions known, compressed once"), text);
        assertTrue(text.contains(" --known --whole "), text);
        assertTrue(
                text.contains(" --strategies full\n") && !text.contains("--block"),
                "what goes with a compressed cache would be refused: " + text);
    }

    /** A call that went on with others' readings had its own options, which are not theirs. */
    @Test
    void optionsOfSeveralCallsAreNotSaidOfAll() {
        Map<String, String> given = Map.of("--recent-share", "0.5");
        Ruler.Reading half = reading(512, 0, "entropy-merged", "{recentShare=0.5}", 0.5, 1);
        RulerReport first = ruler(128, given, reading(512, 0, "full", "{}", 0, 2), half);
        assertEquals(first, ruler(128, given).after(first));
        assertEquals(given, ruler(128, given).after(ruler(128, Map.of())).options(), "nothing was read before");
        RulerReport second = ruler(128, Map.of()).after(first);
        assertEquals(first.readings(), second.readings());
        String text = page(write("two", second)).markdown();
        assertTrue(text.contains("several calls had different ones") && !text.contains("--recent-share"), text);
        assertFalse(page(write("one", first)).markdown().contains("several calls"));
    }

    /** The command would refuse an option that nothing takes which was made so far. */
    @Test
    void optionsOfCachesThatAStoppedCallHadNotComeToAreLeftOut() {
        Map<String, String> given = new LinkedHashMap<>();
        given.put("--recent-share", "0.5");
        given.put("--calibration", "none");
        given.put("--observe", "capture");
        given.put("--sinks", "2");
        given.put("-t", "2");
        Ruler.Reading full = reading(512, 0, "full", "{}", 0, 2);
        Ruler.Reading newest = reading(512, 0, "streaming-llm", "{sinks=2}", 0.5, 1);
        Ruler.Reading merged = reading(512, 0, "entropy-merged", "{sinks=2}", 0.5, 1);
        String stopped = page(write("stopped", ruler(128, given, full, newest))).markdown();
        assertTrue(stopped.contains(" --strategies full,streaming-llm --compression 0.5 --block 128 --sinks 2 -t 2\n"));
        String whole =
                page(write("whole", ruler(128, given, full, newest, merged))).markdown();
        assertTrue(whole.contains(" --recent-share 0.5 --calibration none --observe capture --sinks 2 -t 2\n"), whole);

        Map<String, String> observed = Map.of("--observe", "capture");
        Facts.Run shifted = run("context-shift", "{}", 1024, 1);
        String first = page(write("first", facts(observed, shifted))).markdown();
        assertTrue(first.contains(" --strategies context-shift --cells 1024\n"), first);
        Facts.Run h2o = run("h2o", "{}", 1024, 1);
        String both = page(write("both", facts(observed, shifted, h2o))).markdown();
        assertTrue(both.contains(" --strategies context-shift,h2o --cells 1024 --observe capture\n"), both);
    }

    /** A folder takes readings of several settings: rows are not mixed. */
    @Test
    void cachesOfOneNameAreToldApart() {
        String text = page(write(
                        "both",
                        ruler(
                                128,
                                Map.of("--recent-share", "0.5"),
                                reading(512, 0, "full", "{}", 0, 2),
                                reading(512, 0, "entropy-merged", "{recentShare=0.25}", 0.5, 1),
                                reading(512, 0, "entropy-merged", "{recentShare=0.5}", 0.5, 2))))
                .markdown();
        assertTrue(text.contains("| entropy-merged {recentShare=0.25} | 50.0 |"), text);
        assertTrue(text.contains("| entropy-merged {recentShare=0.5} | 100.0 |"), text);
        assertTrue(text.contains("several settings"), text);
        assertTrue(
                text.contains("--strategies full,entropy-merged --compression 0.5 --block 128 --recent-share 0.5\n"));
        String one = page(write("one", facts(run("h2o", "{a=1}", 1024, 1), run("h2o", "{a=2}", 1024, 2))))
                .markdown();
        assertTrue(one.contains("| h2o {a=1} | 1,024 | 25 % |") && one.contains("| h2o {a=2} | 1,024 | 50 % |"), one);
        assertTrue(one.contains(" --strategies h2o --cells 1024 "), one);
    }

    @Test
    void factsHaveTheirTablesSettingsCommandAndPlot() {
        HtmlReport page = page(
                write("talk", facts(run("full", "{}", 0, 4), run("h2o", "{}", 1024, 3), run("h2o", "{}", 512, 1))));
        assertEquals(List.of(), page.problems());
        String text = page.markdown();
        assertTrue(
                text.contains("A conversation's facts: llama 1B Q4_0, 4 facts in about 4,000 tokens, answers of 24 at"
                        + " most, block 128, seed 1, 2 threads, flash attention on, cells q8_0/q4_0; kvmerge 0.1.0,"),
                text);
        assertTrue(text.contains("\n| h2o | 1,024 | 75 % | 30-95 | 75 % |"), text);
        assertTrue(text.contains("\n| rule | cells | obeyed |"), text);
        assertTrue(text.contains("Wilson's interval"), text);
        assertTrue(
                text.contains(
                        "\n    bin/kvmerge facts -m m.gguf --facts 4 --tokens 4000 --answer 24 --block 128 --seed 1"
                                + " -fa on -ctk q8_0 -ctv q4_0 --strategies full,h2o --cells 1024,512 -t 2\n"),
                text);
        assertEquals(1, plots(page));
    }

    @Test
    void whatIsBrokenOrEmptyIsNamedAndTheOthersAreShown() throws IOException {
        Path good = write("a", facts(run("full", "{}", 0, 4)));
        Path noRuns = write("b", facts());
        Path noReadings = write("c", ruler(128, Map.of()));
        Path foreign = Files.createDirectories(root.resolve("d"));
        Files.writeString(foreign.resolve("ruler.json"), "{\"length\": 4096, \"scores\": []}");
        Files.writeString(good.resolve("ruler.json"), "{\"settings\"");
        HtmlReport page = page(good, noRuns, noReadings, foreign);
        assertEquals(4, page.problems().size(), page.problems()::toString);
        String[] expected = {
            "ruler.json are broken", "no cache is asked", "no text is read", "ruler.json are broken (versions is"
        };
        for (int i = 0; i < expected.length; i++) {
            String problem = page.problems().get(i);
            assertTrue(problem.startsWith("abcd".charAt(i) + ": ") && problem.contains(expected[i]), problem);
        }
        assertTrue(page.markdown().contains("| full | 4,000 | 100 % |"), page.markdown());
        assertEquals(4, page.html().split("class=\"missing\"", -1).length - 1);
    }

    /** A value that a shell would take apart or expand is one word. */
    @Test
    void valuesAreQuotedForAShell() {
        String text = page(write(
                        "quoted",
                        ruler(
                                128,
                                Map.of("--calibration", "my model's $1.json"),
                                reading(512, 0, "entropy-merged", "{}", 0.5, 2))))
                .markdown();
        assertTrue(text.contains(" --calibration 'my model'\\''s $1.json'\n"), text);
    }
}
