package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/** Not a method, but something to read the figures of methods on. Only "experiment" knows what to do with one. */
public sealed interface Scale extends Strategy permits Oracle, QuantisedCells, QuantisedWeights {
    /** Whether it keeps every cell, and so nothing is planned. */
    default boolean keepsAll() {
        return true;
    }

    @Override
    default Plan plan(CellStats cells, int budget) {
        throw new IllegalStateException(name() + " is a scale for 'experiment': it keeps every cell");
    }
}
