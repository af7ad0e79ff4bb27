package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class EndlessTableTest {
    private static final int STRETCH = 256;

    /** Of 513 tokens; the second bounded cache costs .1 nats more, but .3 in the second half of its second stretch. */
    private static Map<String, double[]> traces() {
        double[] ours = new double[513];
        Arrays.fill(ours, 2);
        ours[0] = Double.NaN;
        double[] other = Arrays.stream(ours).map(x -> x + 0.1).toArray();
        Arrays.fill(other, 385, 513, 2.3);
        Map<String, double[]> traces = new LinkedHashMap<>();
        traces.put("full", Arrays.copyOf(ours, 257));
        traces.put("entropy-merged", ours);
        traces.put("streaming-llm", other);
        return traces;
    }

    @Test
    void aCacheIsComparedWithTheFirstBoundedOneTokenByToken() {
        List<String> lines = EndlessTable.csv(traces(), STRETCH).lines().toList();
        assertEquals("cache,tokens,perplexity,percent_over_first,percent_error", lines.getFirst());
        assertEquals("\"full\",256,7.389,,", lines.get(1), "the full cache is no competitor");
        assertEquals("\"entropy-merged\",256,7.389,,", lines.get(2));
        assertEquals("\"streaming-llm\",256,8.166,10.517,0.000", lines.get(4), "e^.1, without an error");
        // Means of 64 tokens: .1 .1 .3 .3, mean .2, standard error .0577.
        assertEquals("\"streaming-llm\",512,9.025,22.140,7.052", lines.get(5));
    }

    @Test
    void theTableEndsWithAllTokens() {
        List<String> lines = EndlessTable.of(traces(), STRETCH).lines().toList();
        assertTrue(lines.getFirst().contains("over entropy-merged"), lines.getFirst());
        assertTrue(lines.get(3).matches(" *512 +- +7\\.389 +9\\.025 +\\+22\\.1 ± 7\\.1 %"), lines.get(3));
        // Means of 64 tokens: six of .1, two of .3; mean .15, standard error .0327.
        assertTrue(lines.getLast().matches(" *all +- .*\\+16\\.2 ± 3\\.8 %"), "full read less: " + lines.getLast());
    }

    @Test
    void whatIsTooShortToCompareSaysSo() {
        Map<String, double[]> traces = new LinkedHashMap<>();
        traces.put("h2o", new double[100]);
        traces.put("streaming-llm", new double[100]);
        assertTrue(EndlessTable.csv(traces, STRETCH).endsWith("\"streaming-llm\",100,1.000,,\n"));
        assertTrue(EndlessTable.of(traces, STRETCH).strip().endsWith("-"));
    }
}
