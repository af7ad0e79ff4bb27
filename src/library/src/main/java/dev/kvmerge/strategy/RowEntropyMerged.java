package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Spans;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Objects;

/**
 * The founding algorithm as it was written: a token whose own attention row is diffuse (normalised Shannon entropy
 * above a threshold) is taken to be dispensable, and each run of such neighbours is merged into one summary token,
 * weighted by attention mass. Measured, it is worse than plain eviction (docs/performance.md); it is here to be
 * compared with.
 *
 * <p>The most diffuse runs go first, until the budget holds; the last one is merged only as far as needed. When all
 * runs are merged and the budget still does not hold, the cells with the least attention go, as in H2O.
 *
 * @param threshold entropy above which a token is diffuse, 0..1; 0.3 to 0.7 is useful
 * @param sinks first tokens, never merged or dropped
 * @param recentShare share of the budget that the newest tokens have for themselves, neither merged nor dropped, 0..1
 * @param bias how merged cells keep their mass
 */
public record RowEntropyMerged(double threshold, int sinks, double recentShare, Bias bias) implements Strategy {
    public RowEntropyMerged {
        if (!(threshold >= 0 && threshold <= 1)) {
            throw new KvmergeException.Usage("--threshold must be 0..1 (0.3 to 0.7 is useful): " + threshold);
        }
        Middle.check(sinks, recentShare);
        Objects.requireNonNull(bias, "bias");
    }

    @Override
    public String name() {
        return "entropy-merged-row";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMass().withEntropy().withBias(bias);
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, block);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int excess = cells.size() - budget;
        int first = Math.min(sinks, budget - 1);
        int end = Middle.end(cells, first, budget, recentShare);
        Plan.Builder plan = Plan.builder(cells.size());
        boolean[] merged = new boolean[cells.size()];
        for (Span span : spans(cells, first, end)) {
            if (excess == 0) {
                break;
            }
            int length = Math.min(span.length(), excess + 1);
            int[] members = new int[length];
            double[] masses = new double[length];
            for (int k = 0; k < length; k++) {
                members[k] = span.from + k;
                masses[k] = cells.mass()[members[k]];
                merged[members[k]] = true;
            }
            plan.merge(members, masses);
            excess -= length - 1;
        }
        List<Integer> alone = new ArrayList<>();
        for (int i = first; i < end; i++) {
            if (!merged[i]) {
                alone.add(i);
            }
        }
        // Summaries are dropped only when nothing else is left to drop.
        int evict = Math.min(excess, alone.size());
        for (int k : Selection.largest(alone.size(), evict, k -> -cells.mass()[alone.get(k)])) {
            plan.evict(alone.get(k));
        }
        excess -= evict;
        if (excess > 0) {
            Plan soFar = plan.build();
            List<Integer> pivots = new ArrayList<>();
            for (int i = first; i < end; i++) {
                if (merged[i] && soFar.target()[i] == i) {
                    pivots.add(i);
                }
            }
            for (int k : Selection.largest(pivots.size(), excess, k -> -cells.mass()[pivots.get(k)])) {
                int pivot = pivots.get(k);
                for (int i = first; i < end; i++) {
                    if (soFar.target()[i] == pivot && i != pivot) {
                        plan.evict(i);
                    }
                }
                plan.evict(pivot);
            }
        }
        return plan.build();
    }

    /** A run of cells [from, to) above the threshold. */
    record Span(int from, int to, double entropy) {
        int length() {
            return to - from;
        }
    }

    /** The runs of two and more, the most diffuse first. */
    List<Span> spans(CellStats cells, int first, int end) {
        int[] firstOf = Spans.find(cells.entropy(), first, end, threshold);
        List<Span> spans = new ArrayList<>();
        for (int from = first; from < end; ) {
            int to = from + 1;
            double sum = cells.entropy()[from];
            while (to < end && firstOf[to] == from) {
                sum += cells.entropy()[to++];
            }
            if (to - from >= 2) {
                spans.add(new Span(from, to, sum / (to - from)));
            }
            from = to;
        }
        spans.sort(Comparator.comparingDouble((Span s) -> -s.entropy).thenComparingInt(Span::from));
        return spans;
    }
}
