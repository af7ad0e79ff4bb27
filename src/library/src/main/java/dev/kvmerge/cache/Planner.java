package dev.kvmerge.cache;

import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Bias;

/**
 * Decides what becomes of the cells. A planner is a pure function from statistics to plan: no native code, no file, no clock. It is
 * called once a block for each layer and KV head, from several threads.
 */
public interface Planner {
    /**
     * Plans one layer and KV head.
     *
     * @param budget cells that must be left, less than {@code cells.size()}
     * @return a plan with exactly that many groups, in which the newest cell stays alone
     */
    Plan plan(CellStats cells, int budget);

    /** Whether it reads {@link CellStats#mass()}. */
    default boolean needsMass() {
        return false;
    }

    /** The power of attention that {@link CellStats#mass()} sums up: 1, 1.5 or 2. */
    default double massPower() {
        return 1;
    }

    /** How many of a block's newest queries the mass is over, an observation window; 0 for all. */
    default int massWindow() {
        return 0;
    }

    /** Whether it reads {@link CellStats#queries()}. */
    default boolean needsQueries() {
        return false;
    }

    /** Whether it reads {@link CellStats#entropy()}. */
    default boolean needsEntropy() {
        return false;
    }

    /** What says which tokens are going to be needed, for {@link CellStats#prior()}; null for nothing. */
    default Calibration calibration() {
        return null;
    }

    /** Factor on a cell's mass at each block before the block's own is added: 1 accumulates, 0 forgets. */
    default double massDecay() {
        return 1;
    }

    /** How merged cells keep their members' attention mass. */
    default Bias bias() {
        return Bias.NONE;
    }

    /** Whether keys are rotated to their pivot's position before they are averaged. */
    default boolean pivotFrame() {
        return true;
    }
}
