package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import java.util.Objects;

/**
 * The cells that the rest of the text is going to attend to, known from a recorded run through the full cache. Not a
 * strategy: the limit that every eviction can be compared with. "experiment" records that run when it is asked for
 * this.
 */
public record Oracle() implements Foreknowing {
    /** What the scale is called. */
    public static final String NAME = "oracle";

    @Override
    public String name() {
        return NAME;
    }

    @Override
    public Strategy knowing(Future future) {
        return new Knowing(Objects.requireNonNull(future, "future"));
    }

    private record Knowing(Future future) implements Strategy {
        @Override
        public String name() {
            return NAME;
        }

        @Override
        public Plan plan(CellStats cells, int budget) {
            int n = cells.size();
            int newest = cells.newest();
            double[] score = new double[n];
            for (int i = 0; i < n; i++) {
                score[i] = future.mass(cells.layer(), cells.kvHead(), cells.position()[i], newest);
            }
            return Selection.keepLargestAndNewest(n, n - 1, budget, i -> score[i]);
        }
    }
}
