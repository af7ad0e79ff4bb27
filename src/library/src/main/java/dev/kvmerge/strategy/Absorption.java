package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;

/**
 * What evict-then-merge methods share: cells that stay, and for each other one the staying cell it goes into, or none.
 */
final class Absorption {
    private final int[] into;

    /** Starts with an eviction: every cell that does not stay is dropped. */
    Absorption(Plan eviction) {
        into = eviction.target().clone();
    }

    /** Whether a cell stays. */
    boolean keeps(int i) {
        return into[i] == i;
    }

    /** A cell goes into one that stays. */
    void absorb(int cell, int survivor) {
        into[cell] = survivor;
    }

    /**
     * For each cell that does not stay, the candidate whose key points the same way most, -1 where there is none, and
     * the cosine of the two. For those that stay, -1 and minus infinity.
     */
    record Nearest(int[] cell, double[] similarity) {}

    /** Finds the nearest candidates of the cells that do not stay. */
    Nearest nearest(CellStats cells, IntPredicate candidate) {
        int n = into.length;
        float[] keys = cells.keys();
        int dim = keys.length / n;
        float[] unit = Vectors.normalised(keys, dim);
        int[] candidates = IntStream.range(0, n).filter(candidate).toArray();
        int[] cell = new int[n];
        double[] similarity = new double[n];
        for (int i = 0; i < n; i++) {
            cell[i] = -1;
            similarity[i] = Double.NEGATIVE_INFINITY;
            for (int j : keeps(i) ? new int[0] : candidates) {
                double s = Vectors.dot(unit, i, unit, j, dim);
                if (s > similarity[i]) {
                    similarity[i] = s;
                    cell[i] = j;
                }
            }
        }
        return new Nearest(cell, similarity);
    }

    /**
     * The plan, with these weights, normalised over each group.
     *
     * @param weight of keys and values, [cells]
     */
    Plan plan(double[] weight) {
        return new Plan(into, shares(weight));
    }

    /** As above, but keys are left as they are: only values are averaged. */
    Plan planForValues(double[] weight) {
        float[] keyWeight = new float[into.length];
        for (int i = 0; i < into.length; i++) {
            keyWeight[i] = keeps(i) ? 1 : 0;
        }
        return new Plan(into, keyWeight, shares(weight), null);
    }

    private float[] shares(double[] weight) {
        double[] total = new double[into.length];
        int[] members = new int[into.length];
        for (int i = 0; i < into.length; i++) {
            if (into[i] >= 0) {
                total[into[i]] += weight[i];
                members[into[i]]++;
            }
        }
        float[] share = new float[into.length];
        for (int i = 0; i < into.length; i++) {
            share[i] =
                    into[i] < 0 ? 1 : total[into[i]] > 0 ? (float) (weight[i] / total[into[i]]) : 1f / members[into[i]];
        }
        return share;
    }
}
