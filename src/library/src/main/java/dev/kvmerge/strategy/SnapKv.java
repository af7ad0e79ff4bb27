package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * What the newest queries attend to, smoothed over neighbours, and the newest tokens. Li et al. 2024, "SnapKV: LLM
 * Knows What You are Looking for Before Generation": votes are the attention of the observation queries, the newest,
 * average-pooled along the cells.
 *
 * @param queries newest tokens, whose queries vote and which always stay; the paper's 32
 * @param kernel cells that votes are averaged over, odd; the paper's 7
 */
public record SnapKv(int queries, int kernel) implements Strategy {
    public SnapKv {
        if (queries < 1 || kernel < 1 || kernel % 2 == 0) {
            throw new KvmergeException.Usage(
                    "snapkv needs positive queries and a positive odd kernel: " + queries + ", " + kernel);
        }
    }

    @Override
    public String name() {
        return "snapkv";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMassQueries(queries).withMassDecay(0);
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(queries, 1);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int old = cells.size() - Math.min(queries, budget);
        double[] pooled = new double[old];
        for (int i = 0; i < old; i++) {
            for (int j = Math.max(0, i - kernel / 2); j <= Math.min(old - 1, i + kernel / 2); j++) {
                pooled[i] += cells.mass()[j] / kernel; // cells beyond the ends count as 0, as the paper's pooling pads
            }
        }
        return Selection.keepLargestAndNewest(cells.size(), old, budget, i -> pooled[i]);
    }
}
