package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/**
 * The cells that the rest of the text is going to attend to, known from a recorded run through the full cache. Not a method: the limit that
 * every eviction can be compared with. "experiment" records that run when it is asked for this.
 *
 * @param future the record; null until there is one
 */
public record Oracle(Future future) implements Scale {
    /** The name of the strategy whose future is yet to be recorded. */
    public static final String NAME = "oracle";

    /** What a full run attended to. */
    @FunctionalInterface
    public interface Future {
        /**
         * Attention that a position will get from all queries after another.
         *
         * @param after the newest position so far
         */
        double mass(int layer, int kvHead, int position, int after);
    }

    @Override
    public String name() {
        return NAME;
    }

    @Override
    public java.util.Map<String, Object> parameters() {
        return java.util.Map.of();
    }

    @Override
    public boolean keepsAll() {
        return false;
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        if (future == null) {
            throw new IllegalStateException("the oracle needs the attention of a full run");
        }
        int n = cells.size();
        int newest = cells.newest();
        double[] score = new double[n];
        for (int i = 0; i < n; i++) {
            score[i] = future.mass(cells.layer(), cells.kvHead(), cells.position()[i], newest);
        }
        return Selection.keepLargestAndNewest(n, n - 1, budget, i -> score[i]);
    }
}
