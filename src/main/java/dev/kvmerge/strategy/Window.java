package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;

/** The part of the cells that a strategy may touch: after the sinks, before the newest. */
final class Window {
    private Window() {}

    /**
     * End (exclusive) of the cells that may be touched: those before the newest {@code recent} positions. The window of recent tokens
     * shrinks when the budget does not hold it beside the {@code first} sinks. The newest cell is never among them.
     */
    static int end(CellStats cells, int first, int budget, int recent) {
        int n = cells.size();
        int end = n - 1;
        while (end > first && cells.position()[end - 1] > cells.newest() - recent) {
            end--;
        }
        return Math.max(end, first + n - budget);
    }
}
