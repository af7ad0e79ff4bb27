package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/** What evict-then-merge methods share: cells that stay, and for each other one the staying cell it goes into, or none. */
final class Absorption {
    private final boolean[] kept;
    private final int[] into;

    /** Starts with every cell that does not stay dropped. */
    Absorption(boolean[] kept) {
        this.kept = kept;
        this.into = new int[kept.length];
        for (int i = 0; i < kept.length; i++) {
            into[i] = kept[i] ? i : Plan.EVICTED;
        }
    }

    /** Which cells a heavy-hitter selection keeps: the newest, and of the rest those with the most attention. */
    static boolean[] heavyHitters(CellStats cells, int budget, double recentShare) {
        int recent = Math.max(1, (int) Math.round(budget * recentShare));
        Plan plan = Selection.keepLargestAndNewest(cells.size(), cells.size() - recent, budget, i -> cells.mass()[i]);
        boolean[] kept = new boolean[cells.size()];
        for (int i = 0; i < kept.length; i++) {
            kept[i] = plan.target()[i] == i;
        }
        return kept;
    }

    boolean keeps(int i) {
        return kept[i];
    }

    /** A cell goes into one that stays. */
    void absorb(int cell, int survivor) {
        into[cell] = survivor;
    }

    /** Cosine similarity of the keys, the staying cell nearest to each other one in [from, to), and how near it is. */
    record Nearest(int[] cell, double[] similarity) {}

    /** Finds, for every cell that does not stay, the staying one among [from, to) whose key points the same way most. */
    Nearest nearest(CellStats cells, int from, int to) {
        int n = kept.length;
        float[] keys = cells.keys();
        int dim = keys.length / n;
        float[] unit = Vectors.normalised(keys, dim);
        int[] cell = new int[n];
        double[] similarity = new double[n];
        for (int i = 0; i < n; i++) {
            cell[i] = -1;
            similarity[i] = Double.NEGATIVE_INFINITY;
            for (int j = from; j < to && !kept[i]; j++) {
                double s = kept[j] ? Vectors.dot(unit, i, unit, j, dim) : Double.NEGATIVE_INFINITY;
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
        float[] keyWeight = new float[kept.length];
        for (int i = 0; i < kept.length; i++) {
            keyWeight[i] = kept[i] ? 1 : 0;
        }
        return new Plan(into, keyWeight, shares(weight));
    }

    private float[] shares(double[] weight) {
        double[] total = new double[kept.length];
        int[] members = new int[kept.length];
        for (int i = 0; i < kept.length; i++) {
            if (into[i] >= 0) {
                total[into[i]] += weight[i];
                members[into[i]]++;
            }
        }
        float[] share = new float[kept.length];
        for (int i = 0; i < kept.length; i++) {
            share[i] =
                    into[i] < 0 ? 1 : total[into[i]] > 0 ? (float) (weight[i] / total[into[i]]) : 1f / members[into[i]];
        }
        return share;
    }
}
