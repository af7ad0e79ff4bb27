package dev.kvmerge.strategy;

import dev.kvmerge.cache.Planner;

/**
 * A compression method: a {@link Planner} with a name. Write one as a record whose components are its parameters, and
 * check those in its constructor; docs/strategies.md has one in twenty lines.
 */
public non-sealed interface Strategy extends Method, Planner {
    @Override
    String name();

    @Override
    default boolean keepsAll() {
        return false;
    }

    @Override
    default int fewestCells(int block) {
        return Planner.super.fewestCells(block);
    }
}
