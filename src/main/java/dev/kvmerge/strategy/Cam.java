package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import java.util.SplittableRandom;

/**
 * Heavy hitters; the value of each evicted token is shared out among the tokens after it that stay, with a probability that grows with its
 * attention. Zhang et al. 2024, "CaM: Cache Merging for Memory-efficient LLMs Inference": V_j += M V_i / m for the m tokens after i, M
 * drawn with probability min(1, a_i / mean of a_j), a the average attention. Keys are dropped.
 *
 * @param recentShare share of the budget that goes to the newest tokens
 * @param receivers m, tokens that share a value; the authors' code has 32
 * @param seed of the draws
 */
public record Cam(double recentShare, int receivers, long seed) implements Strategy {
    public Cam {
        if (!(recentShare >= 0 && recentShare <= 1) || receivers < 1) {
            throw new KvmergeException.Usage(
                    "cam needs a recent share of 0..1 and receivers: " + recentShare + ", " + receivers);
        }
    }

    @Override
    public String name() {
        return "cam";
    }

    @Override
    public boolean needsMass() {
        return true;
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        Plan eviction = new H2o(recentShare).plan(cells, budget);
        float[] values = cells.values();
        int dim = values.length / n;
        float[] added = new float[n * dim];
        SplittableRandom random = RandomEviction.stream(seed, cells);
        for (int i = 0; i < n; i++) {
            if (eviction.target()[i] == i) {
                continue;
            }
            int[] after = survivorsAfter(i, eviction.target());
            double mean = 0;
            for (int j : after) {
                mean += cells.rate(j) / after.length;
            }
            if (random.nextDouble() * mean < cells.rate(i)) {
                for (int j : after) {
                    for (int d = 0; d < dim; d++) {
                        added[j * dim + d] += values[i * dim + d] / receivers;
                    }
                }
            }
        }
        return eviction.withAddedValues(added);
    }

    private int[] survivorsAfter(int i, int[] target) {
        int[] after = new int[receivers];
        int found = 0;
        for (int j = i + 1; j < target.length && found < receivers; j++) {
            if (target[j] == j) {
                after[found++] = j;
            }
        }
        return java.util.Arrays.copyOf(after, found);
    }
}
