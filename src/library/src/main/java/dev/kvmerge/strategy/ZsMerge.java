package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;

/**
 * The newest tokens, the most attended ones, and residual cells into which everything else is averaged by count, with
 * the logarithm of the count as their bias. After Liu et al. 2025, "ZSMerge: Zero-Shot KV Cache Compression for
 * Memory-Efficient Long-Context LLMs"; an evicted cell goes to the residual with the nearest key.
 *
 * @param recentShare share of the budget that goes to the newest tokens
 * @param residualShare share of the budget that are residual cells
 */
public record ZsMerge(double recentShare, double residualShare) implements Strategy {
    public ZsMerge {
        if (!(recentShare >= 0 && residualShare >= 0 && recentShare + residualShare <= 1)) {
            throw new KvmergeException.Usage(
                    "the shares must not be negative, nor more than 1 together: " + recentShare + ", " + residualShare);
        }
    }

    @Override
    public String name() {
        return "zsmerge";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass().withBias(Bias.FOLDED);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        Absorption absorption = new Absorption(new H2o(recentShare).plan(cells, budget));
        int old = n - Math.max(1, (int) Math.round(budget * recentShare));
        // Of the kept ones before the newest, the least attended are the residuals.
        int residuals = (int) Math.round(budget * residualShare);
        boolean[] residual = new boolean[n];
        int[] chosen = Selection.largest(
                old,
                Math.min(residuals, budget - (n - old)),
                i -> absorption.keeps(i) ? -cells.mass()[i] : Double.NEGATIVE_INFINITY);
        for (int i : chosen) {
            residual[i] = absorption.keeps(i);
        }
        Absorption.Nearest nearest = absorption.nearest(cells, j -> residual[j]);
        double[] weight = new double[n];
        for (int i = 0; i < n; i++) {
            weight[i] = cells.count()[i];
            if (nearest.cell()[i] >= 0) {
                absorption.absorb(i, nearest.cell()[i]);
            }
        }
        return absorption.plan(weight);
    }
}
