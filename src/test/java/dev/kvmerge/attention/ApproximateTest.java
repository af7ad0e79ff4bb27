package dev.kvmerge.attention;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class ApproximateTest {
    @Test
    void sevenDigitsOfLogarithmAndExponential() {
        for (float x = 1e-37f; x < 1e38f; x *= 1.0007f) {
            double exact = Math.log(x);
            assertEquals(exact, Approximate.log(x), 2e-7 * Math.max(1, Math.abs(exact)), "log " + x);
        }
        for (float x = -87; x <= 88; x += 0.00137f) {
            double exact = Math.exp(x);
            assertEquals(exact, Approximate.exp(x), 4e-7 * exact, "exp " + x);
        }
        assertEquals(0, Approximate.log(1));
        assertEquals(1, Approximate.exp(0));
        assertEquals(0, Approximate.exp(-88));
        assertEquals(0, Approximate.exp(Float.NEGATIVE_INFINITY));
        assertTrue(Float.isNaN(Approximate.exp(Float.NaN)));
    }
}
