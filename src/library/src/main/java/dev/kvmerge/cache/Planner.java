package dev.kvmerge.cache;

import dev.kvmerge.attention.CellStats;

/**
 * Decides what becomes of the cells. A planner is a pure function from statistics to plan: no native code, no file, no
 * clock. It is called once a block for each layer and KV head, from several threads.
 */
@FunctionalInterface
public interface Planner {
    /**
     * Plans one layer and KV head.
     *
     * @param budget cells that must be left, less than {@code cells.size()}
     * @return a plan with exactly that many groups, in which the newest cell stays alone
     */
    Plan plan(CellStats cells, int budget);

    /** What it is called in messages. */
    default String name() {
        return "the planner";
    }

    /** What it reads of the cells and how its merges are written; asked once for a context. */
    default Needs needs() {
        return Needs.NOTHING;
    }

    /** Whether every cell stays: then there is no budget, and nothing is planned. */
    default boolean keepsAll() {
        return false;
    }

    /**
     * Fewest cells it can work with.
     *
     * @param block tokens that come between two plans
     */
    default int fewestCells(int block) {
        return 2;
    }
}
