package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * Heavy hitters, the cells with the most attention accumulated since they came, and the newest tokens; per KV head.
 * Zhang et al. 2023, "H2O: Heavy-Hitter Oracle for Efficient Generative Inference".
 *
 * @param recentShare share of the budget that goes to the newest tokens, 0..1; the paper's half
 */
public record H2o(double recentShare) implements Strategy {
    public H2o {
        Check.recentShare(recentShare);
    }

    @Override
    public String name() {
        return "h2o";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass();
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int recent = Math.max(1, (int) Math.round(budget * recentShare));
        int old = cells.size() - recent;
        return Selection.keepLargestAndNewest(cells.size(), old, budget, i -> cells.mass()[i]);
    }
}
