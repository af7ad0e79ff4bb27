package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import java.util.SplittableRandom;

/**
 * Sinks and the newest; the value of each evicted token is shared out among the tokens after it, with a probability
 * that grows with its attention. Zhang et al. 2024, "CaM: Cache Merging for Memory-efficient LLMs Inference": V_j += M
 * V_i / m for the m tokens after i, M drawn with probability min(1, a_i / mean of a_j), a the average attention. Keys
 * are dropped. Evicting is StreamingLLM's, as in the authors' code for Llama: what receives goes itself in time. Heavy
 * hitters, which stay, would receive without end.
 *
 * @param sinks first tokens that always stay
 * @param receivers m, tokens that share a value; the authors' code has 32
 * @param seed of the draws
 */
public record Cam(int sinks, int receivers, long seed) implements Strategy {
    public Cam {
        Check.sinks(sinks);
        Check.positive("number of receivers", receivers);
    }

    @Override
    public String name() {
        return "cam";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass();
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, 1);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        Plan eviction = new StreamingLlm(sinks).plan(cells, budget);
        float[] values = cells.values();
        int dim = values.length / n;
        float[] added = new float[n * dim];
        SplittableRandom random = RandomEviction.stream(seed, cells);
        // As token by token: the next to go receives too, and passes on what it received.
        for (int i = 0; i < n; i++) {
            if (eviction.target()[i] == i) {
                continue;
            }
            int end = i + 1 + Math.min(receivers, n - i - 1);
            double mean = 0;
            for (int j = i + 1; j < end; j++) {
                mean += cells.rate(j) / (end - i - 1);
            }
            if (random.nextDouble() * mean < cells.rate(i)) {
                for (int j = i + 1; j < end; j++) {
                    for (int d = 0; d < dim; d++) {
                        added[j * dim + d] += (values[i * dim + d] + added[i * dim + d]) / receivers;
                    }
                }
            }
        }
        return eviction.withAddedValues(added);
    }
}
