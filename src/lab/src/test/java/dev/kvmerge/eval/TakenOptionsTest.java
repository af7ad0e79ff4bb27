package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Options that a cache takes, by its name in results. */
@Tag("fast")
class TakenOptionsTest {
    private static final Map<String, String> GIVEN = new LinkedHashMap<>();

    static {
        for (String option : List.of(
                "--sinks",
                "--recent-share",
                "--threshold",
                "--bias",
                "--calibration",
                "--observe",
                "--observe-queries",
                "-t")) {
            GIVEN.put(option, "x");
        }
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "full; -t",
                "context-shift; -t",
                "streaming-llm; --sinks -t",
                "streaming-llm:sinks=2; -t",
                "h2o; --observe --observe-queries -t",
                "h2o:recent-share=0.3; --observe --observe-queries -t",
                "expected-attention; --sinks --observe -t",
                "entropy-merged; --sinks --recent-share --bias --calibration --observe --observe-queries -t",
                "entropy-merged:sinks=2; --recent-share --bias --calibration --observe --observe-queries -t",
                "entropy-merged-row; --sinks --recent-share --threshold --bias --observe --observe-queries -t",
                "dev.kvmerge.Own; --sinks --recent-share --threshold --bias --calibration --observe --observe-queries"
                        + " -t",
                "entropy-merged:nonsense=2; --sinks --recent-share --threshold --bias --calibration --observe"
                        + " --observe-queries -t"
            })
    void areThoseWithAnEffect(String cache, String options) {
        assertEquals(
                options, String.join(" ", TakenOptions.of(GIVEN, List.of(cache)).keySet()));
    }

    /** What only the row signal takes goes with a name that does not say the signal. */
    @ParameterizedTest
    @CsvSource({"row,entropy-merged:sinks=2,true", "column,entropy-merged:sinks=2,false", "row,h2o,false"})
    void thresholdGoesWithTheSignal(String signal, String cache, boolean taken) {
        Map<String, String> given = Map.of("--signal", signal, "--threshold", "0.3");
        assertEquals(taken, TakenOptions.of(given, List.of("full", cache)).containsKey("--threshold"));
    }

    /** The name says it already. */
    @ParameterizedTest
    @CsvSource({"entropy-merged-row,false", "entropy-merged,true", "entropy-merged:sinks=2,true", "h2o,false"})
    void theSignalIsOfOneStrategy(String cache, boolean taken) {
        assertEquals(
                taken,
                TakenOptions.of(Map.of("--signal", "row"), List.of(cache)).containsKey("--signal"));
    }
}
