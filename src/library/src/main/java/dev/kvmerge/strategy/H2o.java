package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/**
 * Heavy hitters, the cells with the most attention accumulated since they came, and the newest tokens; per KV head. Zhang et al. 2023,
 * "H2O: Heavy-Hitter Oracle for Efficient Generative Inference".
 *
 * @param recentShare share of the budget that goes to the newest tokens, 0..1; the paper's half
 */
public record H2o(double recentShare) implements Strategy {
    public H2o {
        if (!(recentShare >= 0 && recentShare <= 1)) {
            throw new KvmergeException.Usage("the recent share must be 0..1: " + recentShare);
        }
    }

    @Override
    public String name() {
        return "h2o";
    }

    @Override
    public boolean needsMass() {
        return true;
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int recent = Math.max(1, (int) Math.round(budget * recentShare));
        int old = cells.size() - recent;
        return Selection.keepLargestAndNewest(cells.size(), old, budget, i -> cells.mass()[i]);
    }
}
