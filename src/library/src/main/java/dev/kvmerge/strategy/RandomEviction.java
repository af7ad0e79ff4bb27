package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import java.util.SplittableRandom;

/**
 * Cells at random, the same at every run: what a method has to beat to have a signal at all.
 *
 * @param seed of the choice
 */
public record RandomEviction(long seed) implements Strategy {
    @Override
    public String name() {
        return "random";
    }

    /** Draws that are a pure function of what a strategy is given: each layer, KV head and block has its own. */
    static SplittableRandom stream(long seed, CellStats cells) {
        long stream = (cells.layer() * 1000003L + cells.kvHead()) * 1000003L + cells.newest();
        return new SplittableRandom(seed * 0x9E3779B97F4A7C15L ^ stream);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        double[] draw = stream(seed, cells).doubles(cells.size()).toArray();
        return Selection.keepLargestAndNewest(cells.size(), cells.size() - 1, budget, i -> draw[i]);
    }
}
