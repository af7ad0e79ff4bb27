package dev.kvmerge.cache;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.EntropyMerging;
import java.util.List;

/**
 * Decides what becomes of the cells. A planner is a pure function from statistics to plan: no native code, no file, no
 * clock. It is called once a block for each layer, and by itself for each KV head of it, from several threads. It does
 * not see cells that are pinned.
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

    /**
     * Plans all KV heads of one layer; by itself, one after the other. A planner that decides over a layer's heads
     * together, or has work that they share, does it here, and need not be a function of single heads.
     *
     * @param heads of the layer, in order. Keys and values of one are overwritten when those of another are read: work
     *     through them one after the other, or copy
     * @param budget cells that must be left of each
     * @return a plan for each, as {@link #plan} makes it
     */
    default Plan[] planLayer(List<CellStats> heads, int budget) {
        return heads.stream().map(head -> plan(head, budget)).toArray(Plan[]::new);
    }

    /** What it is called in messages. */
    default String name() {
        return "the planner";
    }

    /** What it reads of the cells and how its merges are written; asked once for a context. */
    default Needs needs() {
        return Needs.NOTHING;
    }

    /**
     * For a planner whose plans the native library makes itself, to the same bits, all heads at once: its parameters.
     * Null: {@link #plan} is asked.
     */
    default EntropyMerging merging() {
        return null;
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
