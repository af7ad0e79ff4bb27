package dev.kvmerge.cache;

import java.util.Arrays;

/**
 * What becomes of the cells of one layer and KV head. Index i is {@link dev.kvmerge.attention.CellStats}'s.
 *
 * @param target target[i] == i: the cell stays, and is the pivot of its group; target[i] == p: it is merged into pivot
 *     p; {@link #EVICTED}: it is dropped
 * @param weight weight[i] is the cell's share in its group's weighted mean; the shares of a group sum to 1. Of a cell
 *     that stays alone, 1
 * @param valueWeight the same for the cells' values, where a method weights those otherwise than keys; any finite
 *     numbers, and no sum is asked for. Null: as {@code weight}
 * @param addedValues what is added to the values of the cells that stay, after that, [cells][valueDimension] in one
 *     array; rows of others mean nothing. Null: nothing
 */
public record Plan(int[] target, float[] weight, float[] valueWeight, float[] addedValues) {
    /** A plan that weights values as it weights keys. */
    public Plan(int[] target, float[] weight) {
        this(target, weight, null, null);
    }

    /** The same plan, adding to values. */
    public Plan withAddedValues(float[] added) {
        return new Plan(target, weight, valueWeight, added);
    }

    /** The target of a dropped cell. */
    public static final int EVICTED = -1;

    /** A plan that keeps the cells that are marked, each alone, and drops the others. */
    public static Plan keep(boolean[] kept) {
        int[] target = new int[kept.length];
        for (int i = 0; i < kept.length; i++) {
            target[i] = kept[i] ? i : EVICTED;
        }
        return new Plan(target, ones(kept.length));
    }

    /** A plan that keeps all of n cells. */
    public static Plan keepAll(int n) {
        boolean[] kept = new boolean[n];
        Arrays.fill(kept, true);
        return keep(kept);
    }

    /** Starts from a plan that keeps all of n cells. */
    public static Builder builder(int n) {
        return new Builder(n);
    }

    /** Number of groups: cells that are left. */
    public int groups() {
        int groups = 0;
        for (int i = 0; i < target.length; i++) {
            groups += target[i] == i ? 1 : 0;
        }
        return groups;
    }

    /**
     * Checks the plan for a number of cells and a budget.
     *
     * @throws IllegalStateException saying what is wrong, as a strategy's author needs to know
     */
    public void check(int cells, int budget) {
        if (target.length != cells || weight.length != cells) {
            throw new IllegalStateException("a plan for " + target.length + " cells where there are " + cells);
        }
        if (valueWeight != null && valueWeight.length != cells) {
            throw new IllegalStateException(
                    "value weights for " + valueWeight.length + " cells where there are " + cells);
        }
        if (addedValues != null && (addedValues.length % cells != 0 || !allFinite(addedValues))) {
            throw new IllegalStateException(
                    addedValues.length + " elements to add to the values of " + cells + " cells, or one not finite");
        }
        double[] sum = new double[cells];
        for (int i = 0; i < cells; i++) {
            if (valueWeight != null && !Float.isFinite(valueWeight[i])) {
                throw new IllegalStateException("the value of cell " + i + " has weight " + valueWeight[i]);
            }
            int p = target[i];
            if (p == EVICTED) {
                continue;
            }
            if (p < 0 || p >= cells || target[p] != p) {
                throw new IllegalStateException("cell " + i + " goes to " + p + ", which is not a pivot");
            }
            if (!(weight[i] >= 0) || weight[i] > 1.001f) {
                throw new IllegalStateException("cell " + i + " has weight " + weight[i]);
            }
            sum[p] += weight[i];
        }
        for (int i = 0; i < cells; i++) {
            if (target[i] == i && Math.abs(sum[i] - 1) > 1e-3) {
                throw new IllegalStateException("the weights of pivot " + i + "'s group sum to " + sum[i]);
            }
        }
        int last = cells - 1;
        if (target[last] != last || Math.abs(weight[last] - 1) > 1e-3) {
            throw new IllegalStateException("the newest cell must stay, alone: llama.cpp needs its position");
        }
        if (groups() != budget) {
            throw new IllegalStateException("the plan leaves " + groups() + " cells where the budget is " + budget);
        }
    }

    private static boolean allFinite(float[] x) {
        for (float f : x) {
            if (!Float.isFinite(f)) {
                return false;
            }
        }
        return true;
    }

    private static float[] ones(int n) {
        float[] weight = new float[n];
        Arrays.fill(weight, 1);
        return weight;
    }

    /** Builds a plan by naming what is dropped and merged. */
    public static final class Builder {
        private final int[] target;
        private final float[] weight;

        private Builder(int n) {
            target = new int[n];
            Arrays.setAll(target, i -> i);
            weight = ones(n);
        }

        /** Drops a cell. */
        public Builder evict(int cell) {
            target[cell] = EVICTED;
            return this;
        }

        /**
         * Merges cells into one, weighted by non-negative masses; the heaviest is the pivot, whose position the merged
         * cell takes. All masses zero counts as all equal.
         *
         * @throws IllegalArgumentException if a mass is negative or not finite, or there is not one a member
         */
        public Builder merge(int[] members, double[] masses) {
            if (masses.length != members.length) {
                throw new IllegalArgumentException(masses.length + " masses of " + members.length + " cells");
            }
            double total = 0;
            int heaviest = 0;
            for (int m = 0; m < members.length; m++) {
                if (!(masses[m] >= 0 && masses[m] < Double.POSITIVE_INFINITY)) {
                    throw new IllegalArgumentException("cell " + members[m] + " is merged with a mass of " + masses[m]);
                }
                total += masses[m];
                heaviest = masses[m] > masses[heaviest] ? m : heaviest;
            }
            for (int m = 0; m < members.length; m++) {
                target[members[m]] = members[heaviest];
                weight[members[m]] = (float) (total > 0 ? masses[m] / total : 1.0 / members.length);
            }
            return this;
        }

        public Plan build() {
            return new Plan(target, weight);
        }
    }
}
