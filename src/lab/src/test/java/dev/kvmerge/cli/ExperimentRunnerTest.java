package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class ExperimentRunnerTest {
    @Test
    void perplexityIsShownOnceATokenIsScored() {
        assertEquals("1,024 of 7,680 tokens", ExperimentRunner.soFar(1024, 7680, Double.NaN, Double.POSITIVE_INFINITY));
        assertEquals(
                "1,152 of 7,680 tokens, PPL 17.346, 42 tokens/s", ExperimentRunner.soFar(1152, 7680, 17.346, 41.9));
    }
}
