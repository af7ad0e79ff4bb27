package dev.kvmerge.eval;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.strategy.Strategy;

/** The full cache under an observer that asks for the attention, as most compressed runs do. */
record FullAgain() implements Strategy {
    @Override
    public String name() {
        return Experiment.AGAIN;
    }

    @Override
    public boolean keepsAll() {
        return true;
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass();
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        return Plan.keepAll(cells.size());
    }
}
