package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Wilson's interval, by the examples of Newcombe (1998), method 3. */
@Tag("fast")
class ProportionTest {
    @ParameterizedTest
    @CsvSource({
        "81, 263, 0.2553, 0.3662",
        "15, 148, 0.0624, 0.1605",
        "0, 20, 0, 0.1611",
        "20, 20, 0.8389, 1",
        "1, 29, 0.0061, 0.1718"
    })
    void interval(int hits, int of, double low, double high) {
        Proportion p = new Proportion(hits, of);
        assertEquals((double) hits / of, p.share());
        assertEquals(low, p.low(), 0.5e-4);
        assertEquals(high, p.high(), 0.5e-4);
    }

    @Test
    void whatCannotBe() {
        assertThrows(IllegalArgumentException.class, () -> new Proportion(3, 2));
        assertThrows(IllegalArgumentException.class, () -> new Proportion(-1, 2));
    }
}
