package dev.kvmerge.eval;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;

/** The full cache in cells of other types than that has which all are compared with. */
record FullInOtherCells() implements Strategy {
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
