package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import org.junit.jupiter.api.Test;

class TraceTest {
    private static final double NONE = Double.NaN;

    @Test
    void perplexityAndItsErrorOverARange() {
        Trace trace =
                new Trace(new double[] {NONE, 9, 1, 2, 3}, new double[] {NONE, NONE, 0.1, 0.2, 0.6}, new boolean[] {
                    false, false, true, false, true
                });
        Trace.Perplexity p = trace.perplexity(2);
        assertEquals(3, p.tokens());
        assertEquals(Math.exp(2), p.value(), 1e-12);
        assertEquals(Math.exp(2) * Math.sqrt((14.0 / 3 - 4) / 2), p.standardError(), 1e-12);
        Trace.Divergence d = trace.divergence(0);
        assertEquals(0.3, d.mean(), 1e-12);
        assertEquals(Math.sqrt((0.04 + 0.01 + 0.09) / 2 / 3), d.standardError(), 1e-12);
        assertEquals(0.6, d.p99(), 0);
        assertEquals(2.0 / 3, d.topAgreement(), 1e-12);
        assertNull(new Trace(new double[2], new double[] {NONE, NONE}, new boolean[2]).divergence(0));
    }
}
