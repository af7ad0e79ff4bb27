package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/**
 * The cells whose keys are smallest, which tend to be attended most; needs no attention. Devoto et al. 2024, "A Simple
 * and Effective L2 Norm-Based Strategy for KV Cache Compression".
 */
public record KeyNorm() implements Strategy {
    @Override
    public String name() {
        return "knorm";
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        int dim = cells.keys().length / n;
        double[] norm = new double[n];
        for (int i = 0; i < n * dim; i++) {
            norm[i / dim] += (double) cells.keys()[i] * cells.keys()[i];
        }
        return Selection.keepLargestAndNewest(n, n - 1, budget, i -> -norm[i]);
    }
}
