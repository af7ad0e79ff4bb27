package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * Heavy hitters, into which the evicted merge whose keys are alike. Wan et al. 2024, "D2O: Dynamic Discriminative
 * Operations for Efficient Generative Inference of Large Language Models": an evicted cell goes into the kept one with
 * the nearest key, by cosine similarity u, if u is above a threshold; weights are exp(u), and e for the kept one. The
 * threshold is the mean of the nearest similarities, as the paper's first one; its moving average needs a state that a
 * plan does not have, and its budgets by layer need cells that are not shared.
 *
 * @param recentShare share of the budget that goes to the newest tokens
 */
public record D2o(double recentShare) implements Strategy {
    public D2o {
        Check.recentShare(recentShare);
    }

    @Override
    public String name() {
        return "d2o";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass().withKeysAsCached();
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        Absorption absorption = new Absorption(new H2o(recentShare).plan(cells, budget));
        Absorption.Nearest nearest = absorption.nearest(cells, j -> absorption.keeps(j) && j < n - 1);
        double sum = 0;
        int evicted = 0;
        for (int i = 0; i < n; i++) {
            if (nearest.cell()[i] >= 0) {
                sum += nearest.similarity()[i];
                evicted++;
            }
        }
        double threshold = evicted > 0 ? sum / evicted : 1;
        double[] weight = new double[n];
        for (int i = 0; i < n; i++) {
            weight[i] = absorption.keeps(i) ? Math.E : Math.exp(nearest.similarity()[i]);
            if (nearest.cell()[i] >= 0 && nearest.similarity()[i] >= threshold) {
                absorption.absorb(i, nearest.cell()[i]);
            }
        }
        return absorption.plan(weight);
    }
}
