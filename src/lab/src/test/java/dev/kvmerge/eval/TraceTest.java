package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
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

    @Test
    void differencesArePairedAndTheirErrorsAreOfStretches() {
        int n = 1 + 64 * 3 + 5;
        double[] a = new double[n];
        double[] b = new double[n];
        double[] kl = new double[n];
        for (int i = 1; i < n; i++) {
            b[i] = Math.sin(i); // what both share does not count
            a[i] = b[i] + (i - 1) / 64; // the stretches differ by 0, 1 and 2; five tokens are left over
            kl[i] = 0.5;
        }
        a[0] = NONE;
        boolean[] same = new boolean[n];
        Trace.Difference d = new Trace(a, kl, same).minus(new Trace(b, new double[n], same), 1);
        assertEquals(1, d.nll(), 1e-12);
        assertEquals(Math.sqrt(1.0 / 3), d.nllError(), 1e-12);
        assertEquals(0.5, d.kl(), 1e-12);
        assertEquals(0, d.klError(), 1e-12);
        assertNull(new Trace(a, kl, same).minus(new Trace(b, kl, same), n - 70));
    }
}
