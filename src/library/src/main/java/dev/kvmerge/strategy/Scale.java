package dev.kvmerge.strategy;

/**
 * Not a strategy, but something to read the figures of strategies on. Only "experiment" knows what to do with one: it
 * has no plan of its own.
 */
public sealed interface Scale extends Method permits Foreknowing, QuantisedCells, QuantisedWeights {
    @Override
    default boolean keepsAll() {
        return true;
    }

    @Override
    default int fewestCells(int block) {
        return 2;
    }
}
