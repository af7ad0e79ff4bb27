package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * Runs of neighbours with like keys become one cell each, averaged with Gaussian weights around the most attended. Wang
 * et al. 2024, "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks" (KVMerger).
 * The paper joins neighbours above a similarity; here the most similar pairs are joined until the budget holds.
 *
 * @param sinks first tokens, never merged
 * @param recentShare share of the budget that the newest tokens have for themselves
 */
public record KvMerger(int sinks, double recentShare) implements Strategy {
    public KvMerger {
        Middle.check(sinks, recentShare);
        if (recentShare == 1) {
            throw new KvmergeException.Usage("kvmerger needs a recent share below 1");
        }
    }

    @Override
    public String name() {
        return "kvmerger";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass().withKeysAsCached();
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, 2);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        int first = Math.min(sinks, budget - 2);
        int end = Math.max(first + n - budget + 1, Middle.end(cells, first, budget, recentShare));
        float[] keys = cells.keys();
        int dim = keys.length / n;
        float[] unit = Vectors.normalised(keys, dim);
        boolean[] joined = new boolean[n]; // with the next
        for (int k : Selection.largest(
                end - first - 1, n - budget, i -> Vectors.dot(unit, first + i, unit, first + i + 1, dim))) {
            joined[first + k] = true;
        }
        Plan.Builder plan = Plan.builder(n);
        for (int from = first; from < end; ) {
            int to = from + 1;
            while (to < end && joined[to - 1]) {
                to++;
            }
            if (to - from > 1) {
                plan.merge(members(from, to), gaussian(cells, keys, dim, from, to));
            }
            from = to;
        }
        return plan.build();
    }

    private static int[] members(int from, int to) {
        int[] members = new int[to - from];
        for (int i = from; i < to; i++) {
            members[i - from] = i;
        }
        return members;
    }

    /** exp(-|K_p - K_i|^2 / 2 s^2) around the most attended, s^2 the mean squared distance. */
    private static double[] gaussian(CellStats cells, float[] keys, int dim, int from, int to) {
        int pivot = from;
        for (int i = from; i < to; i++) {
            pivot = cells.mass()[i] > cells.mass()[pivot] ? i : pivot;
        }
        double[] squared = new double[to - from];
        double mean = 0;
        for (int i = from; i < to; i++) {
            for (int d = 0; d < dim; d++) {
                double step = keys[i * dim + d] - keys[pivot * dim + d];
                squared[i - from] += step * step;
            }
            mean += squared[i - from] / (to - from - 1);
        }
        double[] weight = new double[to - from];
        for (int i = 0; i < weight.length; i++) {
            weight[i] = mean > 0 ? Math.exp(-squared[i] / (2 * mean)) : 1;
        }
        return weight;
    }
}
