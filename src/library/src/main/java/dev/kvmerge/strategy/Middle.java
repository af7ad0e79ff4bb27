package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;

/** The cells that a strategy may touch: after the sinks, before the newest. */
final class Middle {
    private Middle() {}

    /** Refuses parameters that leave no middle. */
    static void check(int sinks, double recentShare) {
        Check.sinks(sinks);
        Check.recentShare(recentShare);
    }

    /**
     * End (exclusive) of the cells that may be touched: before the newest ones, which have a share of the budget for
     * themselves, less where the {@code first} sinks leave it less. The newest cell is never among them.
     */
    static int end(CellStats cells, int first, int budget, double recentShare) {
        int recent = (int) Math.round(recentShare * budget);
        return cells.size() - Math.clamp(recent, 1, budget - first);
    }
}
