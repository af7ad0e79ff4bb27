package dev.kvmerge.strategy;

import dev.kvmerge.cache.Plan;
import java.util.Arrays;
import java.util.function.IntToDoubleFunction;

/** Choosing the best of many by a score. */
public final class Selection {
    private Selection() {}

    /**
     * The k indices below n with the largest scores, ties to the smaller index, ascending.
     *
     * @throws IllegalArgumentException if there are fewer than k
     */
    public static int[] largest(int n, int k, IntToDoubleFunction score) {
        if (k < 0 || k > n) {
            throw new IllegalArgumentException("cannot choose " + k + " of " + n);
        }
        long[] keyed = new long[n];
        for (int i = 0; i < n; i++) {
            // Single precision in the high half, mapped so that it sorts as an integer; the index in the low half
            // breaks ties.
            int bits = Float.floatToIntBits((float) score.applyAsDouble(i) + 0.0f);
            int sortable = bits ^ ((bits >> 31) & 0x7fffffff);
            keyed[i] = ((long) ~sortable << 32) | i;
        }
        Arrays.sort(keyed);
        int[] chosen = new int[k];
        for (int i = 0; i < k; i++) {
            chosen[i] = (int) keyed[i];
        }
        Arrays.sort(chosen);
        return chosen;
    }

    /**
     * A plan that keeps, of n cells, those from {@code old} on, and of the ones before as many with the largest scores
     * as the budget has room for.
     */
    public static Plan keepLargestAndNewest(int n, int old, int budget, IntToDoubleFunction score) {
        boolean[] kept = new boolean[n];
        Arrays.fill(kept, old, n, true);
        for (int i : largest(old, budget - (n - old), score)) {
            kept[i] = true;
        }
        return Plan.keep(kept);
    }
}
