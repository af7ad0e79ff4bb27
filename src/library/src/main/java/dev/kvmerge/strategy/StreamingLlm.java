package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/**
 * Attention sinks and the newest tokens; needs no statistics. Xiao et al. 2023, "Efficient Streaming Language Models
 * with Attention Sinks".
 *
 * @param sinks first tokens that always stay
 */
public record StreamingLlm(int sinks) implements Strategy {
    public StreamingLlm {
        Check.sinks(sinks);
    }

    @Override
    public String name() {
        return "streaming-llm";
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, 1);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        boolean[] kept = new boolean[cells.size()];
        int first = Math.min(sinks, budget - 1);
        for (int i = 0; i < kept.length; i++) {
            kept[i] = i < first || i >= kept.length - (budget - first);
        }
        return Plan.keep(kept);
    }
}
