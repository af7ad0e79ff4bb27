package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.Ruler;
import dev.kvmerge.eval.RunResult;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * A results.json, ruler.json or facts.json that someone edited, cut or made up is refused with its name and the remedy,
 * or can be used as a whole.
 */
@Tag("fast")
@net.jqwik.api.Tag("fast")
class BrokenResultsTest {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final String RESULTS = "results.json";
    private static final String[] VALUES = {
        "null",
        "{}",
        "[]",
        "[null]",
        "[{}]",
        "\"\"",
        "\"NaN\"",
        "\"x\"",
        "true",
        "0",
        "-1",
        "0.5",
        "1",
        "1e300",
        "-1e300",
        "2147483648",
        "1e999",
        "9".repeat(400),
        "{\"a\": {\"b\": []}}",
        "[".repeat(50) + "]".repeat(50)
    };

    private static final String RULER = "ruler.json";
    private static final String FACTS = "facts.json";

    private static final Report.Versions VERSIONS = new Report.Versions("1", "0.5.0", "25");
    private static final Report.Machine MACHINE = new Report.Machine("cpu", 2, "avx2", "cpu", null);
    private static final Report.ModelInfo MODEL =
            new Report.ModelInfo("m.gguf", "abc", "llama", "llama 1B Q4_0", 2, 4, 2, 64, "Q4_0");
    private static final Report.TextInfo TEXT = new Report.TextInfo("t.txt", "def", 0);
    private static final Map<String, String> OPTIONS = Map.of("--sinks", "2");

    /** What each file has, by its name. */
    private static Map<String, String> whole() {
        try {
            Path folder = Files.createTempDirectory("kvmerge-results");
            RunResult full = new RunResult(
                    "full", Map.of(), 100, 0, 100, 90, 20.0, 0.5, 20.0, null, null, null, null, 9L, 9L, 256, null, null,
                    2.0, 1.5, 0.1, 0.1, 0.1, 100.0, "off", null, null, null, "full");
            RunResult ours = new RunResult(
                    "h2o",
                    Map.of("sinks", 4),
                    30,
                    0.7,
                    100,
                    70,
                    21.0,
                    0.5,
                    20.0,
                    0.02,
                    0.001,
                    0.1,
                    0.9,
                    3L,
                    9L,
                    256,
                    5L,
                    null,
                    2.0,
                    1.5,
                    0.1,
                    0.1,
                    0.1,
                    100.0,
                    "on",
                    32,
                    "capture",
                    3.5,
                    "h2o");
            try (ResultsFolder results = ResultsFolder.open(folder)) {
                results.write(new Report(
                        VERSIONS,
                        MACHINE,
                        MODEL,
                        TEXT,
                        new Report.Settings(100, "stream", 64, 2, "off", "f16", "f16", null),
                        OPTIONS,
                        List.of(full, ours)));
                results.write(ruler());
                results.write(facts());
            }
            Map<String, String> files = new LinkedHashMap<>();
            for (String name : List.of(RESULTS, RULER, FACTS)) {
                files.put(name, Files.readString(folder.resolve(name)));
            }
            delete(folder);
            return files;
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    private static RulerReport ruler() {
        Ruler.Item item = new Ruler.Item("x", 1024, 0);
        return new RulerReport(
                VERSIONS,
                MACHINE,
                MODEL,
                TEXT,
                new RulerReport.Settings(List.of("a", "b"), false, 128, 1, 2, "off", "f16", "f16", null),
                OPTIONS,
                List.of(
                        new Ruler.Reading(
                                item,
                                "full",
                                "{}",
                                0,
                                1000,
                                1000,
                                1,
                                List.of(new Ruler.Answer("a", "?", List.of("1", "2"), "1 and 2", 2))),
                        new Ruler.Reading(
                                item,
                                "h2o",
                                "{recentShare=0.5}",
                                0.7,
                                1000,
                                300,
                                1,
                                List.of(new Ruler.Answer("a", "?", List.of("1", "2"), "1", 1)))));
    }

    private static FactsReport facts() {
        List<Facts.Answer> answers = List.of(new Facts.Answer("pet", "?", "Rex", "Rex.", true, 1, 0.5));
        List<Facts.Check> checks = List.of(new Facts.Check(300, "?", "Yes", true, 1, 0.1));
        return new FactsReport(
                VERSIONS,
                MACHINE,
                MODEL,
                new FactsReport.Settings(1, 330, 8, 96, 1, 2, "off", "f16", "f16", null),
                OPTIONS,
                List.of(
                        new Facts.Run("full", "{}", 0, 512, 320, 320, 1, answers, checks),
                        new Facts.Run("h2o", "{recentShare=0.5}", 160, 256, 160, 320, 1, answers, checks)));
    }

    private static void delete(Path folder) throws IOException {
        try (var files = Files.walk(folder)) {
            for (Path f : files.sorted((a, b) -> b.compareTo(a)).toList()) {
                Files.delete(f);
            }
        }
    }

    private static final Map<String, String> WHOLE = whole();

    /** Whether it was taken; whatever is taken can be shown, compared and drawn. */
    private static boolean taken(String file, byte[] content) {
        try {
            Path folder = Files.createTempDirectory("kvmerge-results");
            try {
                Files.write(folder.resolve(file), content);
                try (ResultsFolder results = ResultsFolder.open(folder)) {
                    use(results, file);
                } catch (KvmergeException e) {
                    assertTrue(e.getMessage().contains(file) && e.getMessage().contains("--overwrite"), e.getMessage());
                    HtmlReport page = HtmlReport.of(folder, List.of(folder));
                    assertTrue(page.problems().getFirst().contains(file), page.problems()::toString);
                    return false;
                }
                HtmlReport.of(folder, List.of(folder)).html();
                return true;
            } finally {
                delete(folder);
            }
        } catch (IOException e) {
            return fail(e);
        }
    }

    /** Reads a file, uses what it holds, and writes it again. */
    private static void use(ResultsFolder results, String file) {
        switch (file) {
            case RULER -> {
                RulerReport report = results.readRuler();
                RulerTable.of(report.readings(), report.settings().tasks());
                results.write(report);
                results.readRuler();
            }
            case FACTS -> {
                FactsReport report = results.readFacts();
                FactsTable.facts(report.runs());
                if (!report.runs().isEmpty()) {
                    FactsTable.rule(report.runs());
                }
                results.write(report);
                results.readFacts();
            }
            default -> {
                Report report = results.read();
                report.differences(report);
                report.runs().forEach(r -> r.id().length());
                Table.of(report.runs());
                Table.comparisons(report.runs(), Map.of());
                Plots.of(report.runs(), Map.of());
                report.runs().forEach(r -> results.readTrace(r.id(), r.tokens()));
                results.write(report);
                results.read();
            }
        }
    }

    private static boolean taken(String file, String content) {
        return taken(file, content.getBytes(StandardCharsets.UTF_8));
    }

    @Test
    void theWholeOneIsTakenAndNothingIsNot() {
        WHOLE.forEach((file, whole) -> {
            assertTrue(taken(file, whole), file);
            assertTrue(taken(file, whole.replaceFirst("(?s) \"options\" : \\{.*?},", "")), "an older " + file);
            for (String nothing :
                    List.of("", " ", "null", "{}", "[]", "[{}]", "\"\"", "0", "{\"runs\": null}", whole + "{}")) {
                assertTrue(!taken(file, nothing), nothing);
            }
            assertTrue(!taken(file, new byte[] {(byte) 0xff, (byte) 0xfe, 0, 1}));
            assertTrue(!taken(file, whole.replace("\"h2o\"", "null")), file);
            assertTrue(!taken(file, whole.replace("\"2\"", "null")), file);
            assertTrue(!taken(file, "[".repeat(100_000)));
        });
        String whole = WHOLE.get(RESULTS);
        assertTrue(!taken(RESULTS, whole.replace("\"cells\" : 30", "\"cells\" : 30, \"cells\" : 31")), "a key twice");
        assertTrue(!taken(RESULTS, whole.replace("\"cells\" : 30", "\"cells\" : 30.5")), "no whole number");
    }

    /** What was written by something else under one of the names is refused by all three. */
    @Test
    void anothersFileIsRefused() {
        WHOLE.forEach((file, whole) -> WHOLE.forEach((other, content) -> {
            if (!other.equals(file)) {
                assertTrue(!taken(file, content), other + " as " + file);
            }
        }));
    }

    /** Where there is a value: paths of names and places. */
    private static void places(JsonNode node, List<Object> path, List<List<Object>> found) {
        found.add(List.copyOf(path));
        List<Object> names = new ArrayList<>();
        if (node.isObject()) {
            node.fieldNames().forEachRemaining(names::add);
        } else {
            for (int i = 0; i < node.size(); i++) {
                names.add(i);
            }
        }
        for (Object name : names) {
            path.add(name);
            places(name instanceof String s ? node.get(s) : node.get((Integer) name), path, found);
            path.removeLast();
        }
    }

    @Provide
    Arbitrary<List<String>> changed() {
        return Arbitraries.of(WHOLE.keySet()).flatMap(file -> {
            List<List<Object>> places = new ArrayList<>();
            places(tree(file), new ArrayList<>(), places);
            places.removeFirst();
            return Arbitraries.of(places).flatMap(place -> Arbitraries.integers()
                    .between(-1, VALUES.length - 1)
                    .map(value -> List.of(file, with(file, place, value))));
        });
    }

    private static JsonNode tree(String file) {
        try {
            return JSON.readTree(WHOLE.get(file));
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    /** The whole one with another value at a place, or without it. */
    private static String with(String file, List<Object> place, int value) {
        try {
            JsonNode root = tree(file);
            JsonNode parent = root;
            for (Object name : place.subList(0, place.size() - 1)) {
                parent = name instanceof String s ? parent.get(s) : parent.get((Integer) name);
            }
            String mark = "\"@@@\"";
            if (parent instanceof ObjectNode object) {
                if (value < 0) {
                    object.remove((String) place.getLast());
                } else {
                    object.put((String) place.getLast(), "@@@");
                }
            } else if (value < 0) {
                ((ArrayNode) parent).remove((Integer) place.getLast());
            } else {
                ((ArrayNode) parent)
                        .set((Integer) place.getLast(), JSON.getNodeFactory().textNode("@@@"));
            }
            return JSON.writeValueAsString(root).replace(mark, value < 0 ? "" : VALUES[value]);
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    @Property
    @net.jqwik.api.Tag("slow")
    void oneValueMissingOrWrong(@ForAll("changed") List<String> fileAndContent) {
        taken(fileAndContent.getFirst(), fileAndContent.getLast());
    }

    @Property(tries = 200)
    @net.jqwik.api.Tag("slow")
    void cutShort(@ForAll @IntRange(min = 0, max = 4000) int length) {
        WHOLE.forEach((file, whole) -> {
            byte[] bytes = whole.getBytes(StandardCharsets.UTF_8);
            int n = Math.min(length, bytes.length - 3);
            assertTrue(!taken(file, Arrays.copyOf(bytes, n)), () -> "the first " + n + " bytes of " + file);
        });
    }

    @Property(tries = 300)
    @net.jqwik.api.Tag("slow")
    void bytesChanged(@ForAll @Size(min = 1, max = 4) List<@IntRange(max = 1 << 20) Integer> where, @ForAll byte with) {
        WHOLE.forEach((file, whole) -> {
            byte[] bytes = whole.getBytes(StandardCharsets.UTF_8);
            where.forEach(i -> bytes[i % bytes.length] = with);
            taken(file, bytes);
        });
    }
}
