package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * The cells that the newest token attends to most. Oren et al. 2024, "Transformers are Multi-State RNNs" (token
 * omission via attention); here per KV head, as all are compared, where the paper averages over heads.
 */
public record Tova() implements Strategy {
    @Override
    public String name() {
        return "tova";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMassQueries(1).withMassDecay(0);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        return Selection.keepLargestAndNewest(n, n - 1, budget, i -> cells.mass()[i]);
    }
}
