package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.eval.Trace;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class KlStatisticsTest {
    private static final double NAN = Double.NaN;

    @Test
    void theBlockIsLlamaPerplexitys() {
        // Two tokens: probabilities 1/2 and 1/8 where the full cache says 1/4 and 1/2; divergences .1 and .3.
        Trace base =
                new Trace(new double[] {NAN, Math.log(4), Math.log(2)}, new double[] {NAN, NAN, NAN}, new boolean[3]);
        Trace q = new Trace(new double[] {NAN, Math.log(2), Math.log(8)}, new double[] {NAN, .1, .3}, new boolean[] {
            false, true, false
        });
        String text = KlStatistics.of(base, q, 1);
        List<String> lines = text.lines().toList();
        assertEquals("====== Perplexity statistics ======", lines.get(0));
        assertTrue(lines.get(1).startsWith("Mean PPL(Q)                   :   4.000000 \u00b1 "), text);
        assertTrue(lines.get(2).startsWith("Mean PPL(base)                :   2.828427 \u00b1 "), text);
        assertEquals("Cor(ln(PPL(Q)), ln(PPL(base))): -100.00%", lines.get(3));
        assertTrue(text.contains("\nMean    KLD:   0.200000 \u00b1   0.100000\n"), text);
        assertTrue(text.contains("\nMaximum KLD:   0.300000\n"), text);
        assertTrue(text.contains("\n99.0%   KLD:   0.298000\n"), text);
        assertTrue(text.contains("\nMedian  KLD:   0.200000\n"), text);
        assertTrue(text.contains("\nMean    \u0394p: -6.250 \u00b1 31.250 %\n"), text);
        assertTrue(text.contains("\nSame top p: 50.000 \u00b1 50.000 %\n"), text);
        assertEquals(39, lines.size(), "as many lines as llama-perplexity prints");
        assertThrows(IllegalArgumentException.class, () -> KlStatistics.of(base, q, 2));
    }
}
