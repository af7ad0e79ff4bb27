package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.EntropyMerging;
import java.util.Objects;

/**
 * The form of entropy merging that works. For each layer and KV head it takes, again and again, the cheapest of two
 * operations until the budget holds: drop a cell, or merge it with its neighbour in position order. Both are priced by
 * the error they are expected to add to the attention's output, from the attention each cell is expected to receive and
 * from the keys and values:
 *
 * <pre>
 *   drop a         m_a |V_a - V_mean|
 *   merge a and b  (m_a + m_b) w_a w_b sigma (|V_a - V_b| + sigma/2 |w_a V_a + w_b V_b - V_mean|),
 *                  sigma^2 = keyCost |K_a - K_b|^2 / d
 * </pre>
 *
 * with m what a {@link Calibration} of the model foresees or, without one, the attention per query so far (to the power
 * massPower), w a cell's share of its pair's, V_mean the mean of V weighted by m. A merged cell stands for several: its
 * logit is raised by the entropy of its weights, H(w), which keeps its members' mass (the Gibbs variational principle),
 * and which the native side folds into its key. docs/architecture.md has the derivation; the greedy choice itself is
 * kvmerge_plan_cells.
 *
 * @param sinks first tokens, never merged or dropped
 * @param recentShare share of the budget that the newest tokens have for themselves, neither merged nor dropped, 0..1
 * @param largestGroup most tokens a merged cell stands for
 * @param decay what 128 tokens leave of the attention received, 0..1
 * @param keyCost how much a distance between keys costs
 * @param massPower the power of attention that is summed up, 1, 1.5 or 2: above 1, what one query needs much counts for
 *     more than what many need a little
 * @param bias how merged cells keep their mass
 * @param calibration foresees the attention that m stands for; null: it goes on as so far
 */
public record EntropyMerged(
        int sinks,
        double recentShare,
        int largestGroup,
        double decay,
        double keyCost,
        double massPower,
        Bias bias,
        Calibration calibration)
        implements Strategy {
    static final int LARGEST_GROUP = 8;
    static final double CALIBRATED_KEY_COST = 0.8;

    public EntropyMerged {
        Middle.check(sinks, recentShare);
        if (!(massPower == 1 || massPower == 1.5 || massPower == 2)) {
            throw new KvmergeException.Usage("the mass power is 1, 1.5 or 2: " + massPower);
        }
        if (calibration != null && (massPower != calibration.massPower() || decay != calibration.decay())) {
            throw new KvmergeException.Usage("the calibration '" + calibration.name() + "' is for mass-power="
                    + calibration.massPower() + " and decay=" + calibration.decay() + ": not for " + massPower + " and "
                    + decay + "; --calibration none takes any");
        }
        Check.positive("largest group", largestGroup);
        Check.decay(decay);
        Check.notNegative("key cost", keyCost);
        Objects.requireNonNull(bias, "bias");
    }

    /** The values that the measurements in docs/ were made with, for a model without a calibration. */
    public EntropyMerged() {
        this(null);
    }

    /** The values that the measurements in docs/ were made with, for a model with a calibration, or null. */
    public EntropyMerged(Calibration calibration) {
        this(
                4,
                0.25,
                LARGEST_GROUP,
                calibration == null ? 0.9 : calibration.decay(),
                calibration == null ? 1.5 : CALIBRATED_KEY_COST,
                calibration == null ? 1.5 : calibration.massPower(),
                Bias.FOLDED,
                calibration);
    }

    static EntropyMerged of(int sinks, double recentShare, Bias bias, Calibration calibration) {
        EntropyMerged usual = new EntropyMerged(calibration);
        return new EntropyMerged(
                sinks, recentShare, usual.largestGroup, usual.decay, usual.keyCost, usual.massPower, bias, calibration);
    }

    @Override
    public String name() {
        return "entropy-merged";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING
                .withMassDecay(decay)
                .withMassPower(massPower)
                .withBias(bias)
                .withCalibration(calibration);
    }

    @Override
    public EntropyMerging merging() {
        return new EntropyMerging(sinks, recentShare, largestGroup, keyCost);
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, block);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        int first = Math.min(sinks, budget - 1);
        int end = Middle.end(cells, first, budget, recentShare);
        double[] received = new double[n];
        for (int i = 0; i < n; i++) {
            received[i] = cells.rate(i);
        }
        double[] expected = calibration == null ? received : calibration.expected(cells, received);
        int[] group = cells.groups(expected, first, end, n - budget, largestGroup, keyCost);
        return plan(group, received);
    }

    /** Members weigh what they received: by the Gibbs principle that keeps their mass. */
    static Plan plan(int[] group, double[] received) {
        int n = group.length;
        int[] size = new int[n];
        for (int g : group) {
            if (g >= 0) {
                size[g]++;
            }
        }
        Plan.Builder plan = Plan.builder(n);
        for (int i = 0; i < n; i++) {
            if (group[i] < 0) {
                plan.evict(i);
            } else if (group[i] == i && size[i] > 1) {
                int[] members = new int[size[i]];
                double[] masses = new double[size[i]];
                for (int j = i, k = 0; k < members.length; j++) {
                    if (group[j] == i) {
                        members[k] = j;
                        masses[k++] = received[j];
                    }
                }
                plan.merge(members, masses);
            }
        }
        return plan.build();
    }
}
