package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;

/**
 * Heavy hitters, into which the evicted with like keys merge so that the output at the queries seen does not change.
 * Tian et al. 2025, "KeepKV: Eliminating Output Perturbation in KV Cache Compression for Efficient LLMs Inference":
 * weights are votes times attention, and the merged cell votes for all its members. The votes' logarithm is what
 * {@link Bias#FOLDED} adds here.
 *
 * @param recentShare share of the budget that goes to the newest tokens
 * @param threshold cosine similarity of keys above which an evicted cell merges, -1..1
 */
public record KeepKv(double recentShare, double threshold) implements Strategy {
    public KeepKv {
        Check.recentShare(recentShare);
        if (!(threshold >= -1 && threshold <= 1)) {
            throw new KvmergeException.Usage("the threshold is a cosine, -1..1: " + threshold);
        }
    }

    @Override
    public String name() {
        return "keepkv";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass().withBias(Bias.FOLDED);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        Absorption absorption = new Absorption(new H2o(recentShare).plan(cells, budget));
        Absorption.Nearest nearest = absorption.nearest(cells, j -> absorption.keeps(j) && j < n - 1);
        double[] weight = new double[n];
        for (int i = 0; i < n; i++) {
            weight[i] = cells.rate(i); // of a merged cell, all its members': its votes are in it
            if (nearest.cell()[i] >= 0 && nearest.similarity()[i] > threshold) {
                absorption.absorb(i, nearest.cell()[i]);
            }
        }
        return absorption.plan(weight);
    }
}
