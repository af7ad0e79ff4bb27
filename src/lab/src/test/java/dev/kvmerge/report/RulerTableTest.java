package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.eval.Ruler;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** Means and errors over texts, worked out by hand. */
@Tag("fast")
class RulerTableTest {
    private static final List<String> TASKS = List.of("a", "b", "c");

    private static Ruler.Answer answer(String task, int found) {
        return new Ruler.Answer(task, "?", List.of("1", "2"), "said", found);
    }

    private static Ruler.Reading reading(String kind, int index, String cache, Ruler.Answer... answers) {
        double compression = cache.equals("full") ? 0 : 0.7;
        return new Ruler.Reading(
                new Ruler.Item(kind, 4096, index), cache, "{share=0.5}", compression, 4000, 1200, 1, List.of(answers));
    }

    /** Tasks a and b are asked of texts of one kind, c of another. */
    private static final List<Ruler.Reading> H2O = List.of(
            reading("x", 0, "h2o", answer("a", 2), answer("a", 0), answer("b", 1)),
            reading("x", 1, "h2o", answer("a", 0), answer("a", 0), answer("b", 0)),
            reading("y", 0, "h2o", answer("c", 1)),
            reading("y", 1, "h2o", answer("c", 2)));

    private static final List<Ruler.Reading> FULL = List.of(
            reading("x", 0, "full", answer("a", 2), answer("a", 2), answer("b", 2)),
            reading("x", 1, "full", answer("a", 2), answer("a", 0), answer("b", 2)),
            reading("y", 0, "full", answer("c", 2)),
            reading("y", 1, "full", answer("c", 2)));

    @Test
    void everyTaskCountsAlikeAndTasksOfOneTextTogether() {
        RulerTable.Mean all = RulerTable.all(H2O, TASKS);
        // a: .5 and 0; b: .5 and 0; c: .5 and 1. The texts' sums of a and b are 1 and 0.
        assertEquals((0.25 + 0.25 + 0.75) / 3, all.mean(), 1e-12);
        double x =
                Math.sqrt(0.5) / Math.sqrt(2) / 3; // deviation of 1 and 0, over the root of two texts and three tasks
        double y = Math.sqrt(0.125) / Math.sqrt(2) / 3;
        assertEquals(Math.hypot(x, y), all.error(), 1e-12);
    }

    @Test
    void whatIsLostIsOfTheSameTexts() {
        // x: 2 - 1 and 1.5 - 0 lost; y: .5 and 0.
        RulerTable.Mean lost = RulerTable.lost(H2O, FULL, TASKS);
        assertEquals((1.25 + 0.25) / 3, lost.mean(), 1e-12);
        assertEquals(Math.hypot(0.25 / 3, 0.25 / 3), lost.error(), 1e-12);
        RulerTable.Mean some = RulerTable.lost(H2O, FULL.subList(0, 3), TASKS);
        assertEquals((1.25 + 0.5) / 3, some.mean(), 1e-12);
        assertTrue(Double.isNaN(some.error()), "of one text there is no error");
        assertTrue(Double.isNaN(RulerTable.lost(H2O, List.of(), TASKS).mean()));
    }

    @Test
    void theTableHasARowACacheAndLength() {
        List<String> lines = RulerTable.of(
                        Stream.concat(H2O.stream(), FULL.stream()).toList(), TASKS)
                .lines()
                .toList();
        assertEquals(4, lines.size(), lines.toString());
        assertEquals(
                "4,096 | 0 % | full | 91.7 | 8.3 | - | - | 75.0 ± 25.0 | 100.0 ± 0.0 | 100.0 ± 0.0",
                String.join(" | ", lines.get(2).strip().split(" {2,}")));
        assertEquals(
                "4,096 | 70 % | h2o | 41.7 | 18.6 | 50.0 | 11.8 | 25.0 ± 25.0 | 25.0 ± 25.0 | 75.0 ± 25.0",
                String.join(" | ", lines.get(3).strip().split(" {2,}")));
    }

    /** An answer may have lines, commas and quotes. */
    @Test
    void anAnswerIsOneCell() {
        Ruler.Reading reading =
                reading("x", 0, "h2o", new Ruler.Answer("a", "Which, then?", List.of("1"), ":\n\n- \"1\"\n- 2", 1));
        String csv = RulerTable.csv(List.of(reading));
        assertEquals(
                "4096,0.7,h2o,1200,x 0,a,\"Which, then?\",1,\":\n\n- \"\"1\"\"\n- 2\",1,1,1.0,{share=0.5}\n",
                csv.substring(csv.indexOf('\n') + 1));
        assertEquals(
                13,
                (int) IntStream.range(0, csv.indexOf('\n'))
                                .filter(i -> csv.charAt(i) == ',')
                                .count()
                        + 1);
    }
}
