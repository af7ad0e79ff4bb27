package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;

/**
 * What {@link EntropyMerged} would do if it knew the attention to come: its prices and its merges, with the attention
 * that a recorded run through the full cache pays to each token in the rest of the text. A merged cell is expected to
 * get what its members got. Not a strategy: where foresight ends and merging begins can be read from it beside
 * {@link Oracle}.
 *
 * @param sinks first tokens, never merged or dropped
 * @param largestGroup most tokens that are merged at once
 * @param keyCost how much a distance between keys costs
 * @param bias how merged cells keep their mass
 */
public record OracleMerged(int sinks, int largestGroup, double keyCost, Bias bias) implements Foreknowing {
    /** What the scale is called. */
    public static final String NAME = "oracle-merged";

    private static final double LEAST = 1e-9; // where nothing is to come, all cells are worth as little

    public OracleMerged {
        Check.sinks(sinks);
        Check.positive("largest group", largestGroup);
        Check.notNegative("key cost", keyCost);
        Objects.requireNonNull(bias, "bias");
    }

    /** With the parameters that {@link EntropyMerged} has with a calibration. */
    public OracleMerged(int sinks, Bias bias) {
        this(sinks, EntropyMerged.LARGEST_GROUP, EntropyMerged.CALIBRATED_KEY_COST, bias);
    }

    @Override
    public String name() {
        return NAME;
    }

    @Override
    public Strategy knowing(Future future) {
        return new Knowing(this, Objects.requireNonNull(future, "future"));
    }

    /** Of one run: it remembers which tokens each cell stands for. */
    private static final class Knowing implements Strategy {
        private final OracleMerged of;
        private final Future future;
        private final Map<Long, Map<Integer, int[]>> merged = new ConcurrentHashMap<>(); // a head's, by pivot position

        Knowing(OracleMerged of, Future future) {
            this.of = of;
            this.future = future;
        }

        @Override
        public String name() {
            return NAME;
        }

        @Override
        public Needs needs() {
            return Needs.NOTHING.withBias(of.bias);
        }

        @Override
        public Plan plan(CellStats cells, int budget) {
            int n = cells.size();
            int[] position = cells.position();
            Map<Integer, int[]> tokens = merged.computeIfAbsent(
                    (long) cells.layer() << Integer.SIZE | cells.kvHead(), head -> new HashMap<>());
            double[] expected = new double[n];
            for (int i = 0; i < n; i++) {
                expected[i] = LEAST;
                for (int token : tokens.getOrDefault(position[i], new int[] {position[i]})) {
                    expected[i] += future.mass(cells.layer(), cells.kvHead(), token, cells.newest());
                }
            }
            int first = Math.min(of.sinks, budget - 1);
            int[] group = cells.groups(expected, first, n - 1, n - budget, of.largestGroup, of.keyCost);
            Plan plan = EntropyMerged.plan(group, expected);
            remember(tokens, position, plan.target());
            return plan;
        }

        private static void remember(Map<Integer, int[]> tokens, int[] position, int[] target) {
            for (int i = 0; i < target.length; i++) {
                if (target[i] == i) {
                    continue;
                }
                int[] own = tokens.getOrDefault(position[i], new int[] {position[i]});
                tokens.remove(position[i]);
                if (target[i] != Plan.EVICTED) {
                    int pivot = position[target[i]];
                    int[] others = tokens.getOrDefault(pivot, new int[] {pivot});
                    int[] all = Arrays.copyOf(others, others.length + own.length);
                    System.arraycopy(own, 0, all, others.length, own.length);
                    tokens.put(pivot, all);
                }
            }
        }
    }
}
