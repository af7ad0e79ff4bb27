package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Bias;
import java.util.Objects;

/**
 * What a {@link Planner} needs of the context that it plans for: what to observe of the attention, and how to write
 * what it merges. It starts from {@link #NOTHING}:
 * {@code Needs.NOTHING.withMass().withMassDecay(0.9).withBias(Bias.FOLDED)}. What is not declared here is not observed,
 * and reading it fails.
 *
 * @param mass whether it reads {@link CellStats#mass()} or {@link CellStats#rate}
 * @param massPower the power of attention that the mass sums up: 1, 1.5 or 2
 * @param massQueries how many of a block's newest queries the mass is over, the observation queries; 0 for all
 * @param massDecay what a block of 128 tokens leaves of a cell's mass before its own is added, 0..1: 1 accumulates, 0
 *     forgets. One of n tokens leaves massDecay^(n / 128)
 * @param queries whether it reads {@link CellStats#queries()}
 * @param queryHeads whether it reads {@link CellStats#queryHeads()}
 * @param entropy whether it reads {@link CellStats#entropy()}
 * @param calibration says which tokens are going to be needed, for {@link CellStats#prior()}; null for none
 * @param bias how merged cells keep their members' attention mass
 * @param pivotFrame whether keys are rotated to their pivot's position before they are averaged
 */
public record Needs(
        boolean mass,
        double massPower,
        int massQueries,
        double massDecay,
        boolean queries,
        boolean queryHeads,
        boolean entropy,
        Calibration calibration,
        Bias bias,
        boolean pivotFrame) {
    /** No statistics, and merged cells that count as one token each, their keys averaged at their pivot's position. */
    public static final Needs NOTHING = new Needs(false, 1, 0, 1, false, false, false, null, Bias.NONE, true);

    public Needs {
        Objects.requireNonNull(bias, "bias");
        if (!(massPower == 1 || massPower == 1.5 || massPower == 2)) {
            throw new KvmergeException.Usage("the mass power is 1, 1.5 or 2, not " + massPower);
        }
        if (massQueries < 0) {
            throw new KvmergeException.Usage(
                    "the mass queries are a number of queries, or 0 for all, not " + massQueries);
        }
        if (!(massDecay >= 0 && massDecay <= 1)) {
            throw new KvmergeException.Usage("the mass decay must be 0..1, not " + massDecay);
        }
        if (!mass && (massPower != 1 || massQueries != 0 || massDecay != 1)) {
            throw new KvmergeException.Usage(
                    "a power, queries or decay of a mass that is not asked for: add withMass()");
        }
    }

    /** Whether the attention or its queries are observed for it, for merged cells that keep their mass too. */
    public boolean observes() {
        return mass || entropy || queries || queryHeads || bias != Bias.NONE;
    }

    /** And the attention that each cell received. */
    public Needs withMass() {
        return new Needs(
                true, massPower, massQueries, massDecay, queries, queryHeads, entropy, calibration, bias, pivotFrame);
    }

    /** And the mass, of a power of the attention: 1, 1.5 or 2. */
    public Needs withMassPower(double power) {
        return new Needs(
                true, power, massQueries, massDecay, queries, queryHeads, entropy, calibration, bias, pivotFrame);
    }

    /** And the mass, over so many of a block's newest queries. */
    public Needs withMassQueries(int newest) {
        return new Needs(
                true, massPower, newest, massDecay, queries, queryHeads, entropy, calibration, bias, pivotFrame);
    }

    /** And the mass, of which 128 tokens leave this share, 0..1. */
    public Needs withMassDecay(double decay) {
        return new Needs(
                true, massPower, massQueries, decay, queries, queryHeads, entropy, calibration, bias, pivotFrame);
    }

    /** And the moments of the queries. */
    public Needs withQueries() {
        return new Needs(
                mass, massPower, massQueries, massDecay, true, queryHeads, entropy, calibration, bias, pivotFrame);
    }

    /** And the moments of each query head's queries, before their rotation. */
    public Needs withQueryHeads() {
        return new Needs(
                mass, massPower, massQueries, massDecay, queries, true, entropy, calibration, bias, pivotFrame);
    }

    /** And the entropy of each token's own attention row. */
    public Needs withEntropy() {
        return new Needs(
                mass, massPower, massQueries, massDecay, queries, queryHeads, true, calibration, bias, pivotFrame);
    }

    /** And what a calibration foresees; null for none. */
    public Needs withCalibration(Calibration of) {
        return new Needs(mass, massPower, massQueries, massDecay, queries, queryHeads, entropy, of, bias, pivotFrame);
    }

    /** And merged cells that keep their members' mass so. */
    public Needs withBias(Bias how) {
        return new Needs(
                mass, massPower, massQueries, massDecay, queries, queryHeads, entropy, calibration, how, pivotFrame);
    }

    /** And keys averaged as they are cached, each in the rotation of its own position. */
    public Needs withKeysAsCached() {
        return new Needs(
                mass, massPower, massQueries, massDecay, queries, queryHeads, entropy, calibration, bias, false);
    }
}
