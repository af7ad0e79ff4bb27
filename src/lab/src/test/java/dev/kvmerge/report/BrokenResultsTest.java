package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.RunResult;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
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
 * A results.json that someone edited, cut or made up is refused with its name and the remedy, or can be used as a
 * whole.
 */
@Tag("fast")
@net.jqwik.api.Tag("fast")
class BrokenResultsTest {
    private static final ObjectMapper JSON = new ObjectMapper();
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

    private static String whole() {
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
                        new Report.Versions("1", "0.5.0", "25"),
                        new Report.Machine("cpu", 2, "avx2", "cpu", null),
                        new Report.ModelInfo("m.gguf", "abc", "llama", "llama 1B Q4_0", 2, 4, 2, 64, "Q4_0"),
                        new Report.TextInfo("t.txt", "def", 0),
                        new Report.Settings(100, "stream", 64, 2, "off", "f16", "f16", null),
                        List.of(full, ours)));
            }
            String text = Files.readString(folder.resolve("results.json"));
            delete(folder);
            return text;
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    private static void delete(Path folder) throws IOException {
        try (var files = Files.walk(folder)) {
            for (Path f : files.sorted((a, b) -> b.compareTo(a)).toList()) {
                Files.delete(f);
            }
        }
    }

    private static final String WHOLE = whole();

    /** Whether it was taken; whatever is taken can be shown, compared and drawn. */
    private static boolean taken(byte[] content) {
        try {
            Path folder = Files.createTempDirectory("kvmerge-results");
            try {
                Files.write(folder.resolve("results.json"), content);
                Report report;
                try {
                    report = ResultsFolder.read(folder);
                } catch (KvmergeException e) {
                    assertTrue(
                            e.getMessage().contains("results.json")
                                    && e.getMessage().contains("--overwrite"),
                            e.getMessage());
                    HtmlReport page = HtmlReport.of(folder, List.of(folder));
                    assertTrue(page.problems().getFirst().contains("results.json"), page.problems()::toString);
                    return false;
                }
                report.differences(report);
                report.runs().forEach(r -> r.id().length());
                Table.of(report.runs());
                Table.comparisons(report.runs(), Map.of());
                Plots.of(report.runs(), Map.of());
                HtmlReport.of(folder, List.of(folder)).html();
                try (ResultsFolder results = ResultsFolder.open(folder)) {
                    report.runs().forEach(r -> results.readTrace(r.id(), r.tokens()));
                    results.write(report);
                }
                ResultsFolder.read(folder);
                return true;
            } finally {
                delete(folder);
            }
        } catch (IOException e) {
            return fail(e);
        }
    }

    private static boolean taken(String content) {
        return taken(content.getBytes(StandardCharsets.UTF_8));
    }

    @Test
    void theWholeOneIsTakenAndNothingIsNot() {
        assertTrue(taken(WHOLE));
        for (String nothing :
                List.of("", " ", "null", "{}", "[]", "[{}]", "\"\"", "0", "{\"runs\": null}", WHOLE + "{}")) {
            assertTrue(!taken(nothing), nothing);
        }
        assertTrue(!taken(new byte[] {(byte) 0xff, (byte) 0xfe, 0, 1}));
        assertTrue(!taken(WHOLE.replace("\"cells\" : 30", "\"cells\" : 30, \"cells\" : 31")), "a key twice");
        assertTrue(!taken(WHOLE.replace("\"cells\" : 30", "\"cells\" : 30.5")), "no whole number");
        assertTrue(!taken(WHOLE.replace("\"h2o\"", "null")));
        assertTrue(!taken("[".repeat(100_000)));
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
    Arbitrary<String> changed() throws IOException {
        List<List<Object>> places = new ArrayList<>();
        places(JSON.readTree(WHOLE), new ArrayList<>(), places);
        places.removeFirst();
        return Arbitraries.of(places)
                .flatMap(place ->
                        Arbitraries.integers().between(-1, VALUES.length - 1).map(value -> with(place, value)));
    }

    /** The whole one with another value at a place, or without it. */
    private static String with(List<Object> place, int value) {
        try {
            JsonNode root = JSON.readTree(WHOLE);
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
    void oneValueMissingOrWrong(@ForAll("changed") String content) {
        taken(content);
    }

    @Property(tries = 200)
    @net.jqwik.api.Tag("slow")
    void cutShort(@ForAll @IntRange(min = 0, max = 4000) int length) {
        byte[] bytes = WHOLE.getBytes(StandardCharsets.UTF_8);
        int n = Math.min(length, bytes.length - 3);
        assertTrue(!taken(Arrays.copyOf(bytes, n)), () -> "the first " + n + " bytes");
    }

    @Property(tries = 300)
    @net.jqwik.api.Tag("slow")
    void bytesChanged(@ForAll @Size(min = 1, max = 4) List<@IntRange(max = 1 << 20) Integer> where, @ForAll byte with) {
        byte[] bytes = WHOLE.getBytes(StandardCharsets.UTF_8);
        where.forEach(i -> bytes[i % bytes.length] = with);
        taken(bytes);
    }
}
