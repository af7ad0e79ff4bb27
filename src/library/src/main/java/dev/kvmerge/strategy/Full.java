package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/** Every cell stays: what all others are compared with. */
public record Full() implements Strategy {
    @Override
    public String name() {
        return Strategies.FULL;
    }

    @Override
    public boolean keepsAll() {
        return true;
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        return Plan.keepAll(cells.size());
    }
}
