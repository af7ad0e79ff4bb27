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

    @Override
    public Plan plan(CellStats cells, int budget) {
        // A pure function of what it is given: each layer, KV head and block has a stream of its own.
        long stream = (cells.layer() * 1000003L + cells.kvHead()) * 1000003L + cells.newest();
        double[] draw = new SplittableRandom(seed * 0x9E3779B97F4A7C15L ^ stream)
                .doubles(cells.size())
                .toArray();
        return Selection.keepLargestAndNewest(cells.size(), cells.size() - 1, budget, i -> draw[i]);
    }
}
