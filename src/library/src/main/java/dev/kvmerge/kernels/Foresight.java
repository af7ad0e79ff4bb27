package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.llama.NativeLibrary;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Attention to come, from attention so far. */
public final class Foresight {
    private Foresight() {}

    /**
     * The attention that each cell is expected to get from a query to come, by a log-linear model, to seven digits:
     * exp(prior_i + w_0 log r_i + w_1 log r_{i-1} + w_2 log r_{i+1} + w_3 log(now - position_i)), r = rate + least; at
     * most e^88.
     *
     * @param rates [cells], in position order, not negative
     * @param prior [cells]
     * @param position [cells]
     * @param now after all positions
     * @param weights [4]
     * @throws dev.kvmerge.KvmergeException if a rate is not finite, or a position not before now
     */
    public static double[] expected(
            double[] rates, float[] prior, int[] position, int now, double least, float[] weights) {
        int n = rates.length;
        if (prior.length != n || position.length != n || weights.length != 4) {
            throw new IllegalArgumentException(n + " rates, " + prior.length + " priors, " + position.length
                    + " positions and " + weights.length + " weights");
        }
        NativeLibrary.require();
        try (Arena local = Arena.ofConfined()) {
            MemorySegment expected = local.allocate(ValueLayout.JAVA_DOUBLE, n);
            Kvmerge.check(Kvmerge_h.kvmerge_expected_attention(
                    n,
                    local.allocateFrom(ValueLayout.JAVA_DOUBLE, rates),
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, prior),
                    local.allocateFrom(ValueLayout.JAVA_INT, position),
                    now,
                    least,
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, weights),
                    expected));
            return expected.toArray(ValueLayout.JAVA_DOUBLE);
        }
    }
}
