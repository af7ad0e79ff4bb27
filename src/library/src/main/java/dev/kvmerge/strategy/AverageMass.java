package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;

/**
 * The cells with the most attention per position since they came, older attention counting less: eviction by the signal
 * that entropy-merged prices its operations with, without merging. What merging adds is the difference of the two.
 *
 * @param sinks first tokens that always stay
 * @param recentShare share of the budget that goes to the newest tokens, 0..1
 * @param decay what 128 tokens leave of the attention received, 0..1
 */
public record AverageMass(int sinks, double recentShare, double decay) implements Strategy {
    public AverageMass {
        Middle.check(sinks, recentShare);
        Check.decay(decay);
    }

    @Override
    public String name() {
        return "average-mass";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMassDecay(decay);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int first = Math.min(sinks, budget - 1);
        int old = Middle.end(cells, first, budget, recentShare);
        return Selection.keepLargestAndNewest(
                cells.size(), old, budget, i -> i < first ? Double.MAX_VALUE : cells.rate(i));
    }
}
