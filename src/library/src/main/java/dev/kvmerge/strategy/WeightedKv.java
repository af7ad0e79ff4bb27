package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * Keys of little attended tokens are dropped, their values go into the next token's, weighted by average attention.
 * Yuan et al. 2025, "WeightedKV: Attention Scores Weighted Key-Value Cache Merging for Large Language Models".
 *
 * @param sinks first tokens, never merged or dropped
 * @param recentShare share of the budget that the newest tokens have for themselves
 */
public record WeightedKv(int sinks, double recentShare) implements Strategy {
    public WeightedKv {
        Middle.check(sinks, recentShare);
    }

    @Override
    public String name() {
        return "weighted-kv";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass();
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, 2);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        int first = Math.min(sinks, budget - 1);
        int old = Middle.end(cells, first, budget, recentShare);
        Absorption absorption =
                new Absorption(new AverageMass(sinks, recentShare, needs().massDecay()).plan(cells, budget));
        double[] weight = new double[n];
        for (int i = 0; i < n; i++) {
            weight[i] = cells.rate(i);
        }
        for (int i = old - 1, next = old; i >= first; i--) {
            if (absorption.keeps(i)) {
                next = i;
            } else if (next < n - 1) { // the newest stays alone
                absorption.absorb(i, next);
            }
        }
        return absorption.planForValues(weight);
    }
}
