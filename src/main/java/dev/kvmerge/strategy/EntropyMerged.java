package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;

/**
 * The form of entropy merging that works. For each layer and KV head it takes, again and again, the cheapest of two operations until
 * the budget holds: drop a cell, or merge it with its neighbour in position order. Both are priced by the error they are expected to
 * add to the attention's output, from the attention each cell receives (its column) and from the keys and values:
 *
 * <pre>
 *   drop a         m_a |V_a - V_mean|
 *   merge a and b  (m_a + m_b) w_a w_b sigma (|V_a - V_b| + sigma/2 |w_a V_a + w_b V_b - V_mean|),
 *                  sigma^2 = keyCost |K_a - K_b|^2 / d
 * </pre>
 *
 * with m the attention a cell receives per position (to the power massPower), w a cell's share of its pair's, V_mean the mean of V weighted by m. A merged cell
 * stands for several: its logit is raised by the entropy of its weights, H(w), which keeps its members' mass (the Gibbs variational
 * principle), and which the native side folds into its key. docs/architecture.md has the derivation.
 *
 * @param sinks first tokens, never merged or dropped
 * @param recentShare share of the budget that the newest tokens have for themselves, neither merged nor dropped, 0..1
 * @param largestGroup most tokens a merged cell stands for
 * @param decay factor on the attention received at each block, 0..1
 * @param keyCost how much a distance between keys costs
 * @param massPower the power of attention that is summed up, 1, 1.5 or 2: above 1, what one query needs much counts for more than what
 *     many need a little
 * @param bias how merged cells keep their mass
 */
public record EntropyMerged(
        int sinks, double recentShare, int largestGroup, double decay, double keyCost, double massPower, Bias bias)
        implements Strategy {
    public EntropyMerged {
        Window.check(sinks, recentShare);
        if (!(massPower == 1 || massPower == 1.5 || massPower == 2)) {
            throw new KvmergeException.Usage("the mass power is 1, 1.5 or 2: " + massPower);
        }
        if (largestGroup < 1 || !(decay >= 0 && decay <= 1) || !(keyCost >= 0)) {
            throw new KvmergeException.Usage(
                    "the largest group must be positive, the decay 0..1 and the key cost not negative: " + largestGroup
                            + ", " + decay + ", " + keyCost);
        }
    }

    /** The values that the measurements in docs/ were made with. */
    public EntropyMerged() {
        this(4, 0.25, 8, 0.9, 1.5, 1.5, Bias.FOLDED);
    }

    @Override
    public String name() {
        return "entropy-merged";
    }

    @Override
    public boolean needsMass() {
        return true;
    }

    @Override
    public double massDecay() {
        return decay;
    }

    @Override
    public int fewestCells(int block) {
        return sinks + block;
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int first = Math.min(sinks, budget - 1);
        int end = Window.end(cells, first, budget, recentShare);
        return new Merging(cells, first, end).reduceBy(cells.size() - budget);
    }

    /** One run over the cells [first, end): groups in a linked list, a heap of the cheapest operation of each. */
    private final class Merging {
        private final int n;
        private final int first;
        private final int end;
        private final int dimK;
        private final int dimV;
        private final float[] keys; // of a group, at its first member
        private final float[] values;
        private final float[] keySteps;
        private final float[] valueSteps;
        private final double[] rate; // m
        private final double[] fromMean; // |V - V_mean|^2 of a group
        private final double[] memberRate;
        private final float[] mean; // V_mean
        private final int[] next;
        private final int[] previous;
        private final int[] groupSize;
        private final int[] nextMember; // chain of a group's members
        private final int[] lastMember;
        private final boolean[] merging; // the cheapest operation of a group is to merge with the next one
        private final double[] cost;
        private final IndexedHeap heap;

        Merging(CellStats cells, int first, int end) {
            this.n = cells.size();
            this.first = first;
            this.end = end;
            keys = cells.keys();
            values = cells.values();
            keySteps = cells.keySteps();
            valueSteps = cells.valueSteps();
            dimK = keys.length / n;
            dimV = values.length / n;
            rate = new double[n];
            mean = new float[dimV];
            double total = 0;
            for (int i = 0; i < n; i++) {
                rate[i] = cells.rate(i);
                total += rate[i];
            }
            memberRate = rate.clone();
            for (int i = 0; i < n; i++) {
                float share = (float) (total > 0 ? rate[i] / total : 1.0 / n);
                for (int d = 0; d < dimV; d++) {
                    mean[d] += share * values[i * dimV + d];
                }
            }
            next = new int[n];
            previous = new int[n];
            groupSize = new int[n];
            nextMember = new int[n];
            lastMember = new int[n];
            merging = new boolean[n];
            cost = new double[n];
            for (int i = first; i < end; i++) {
                next[i] = i + 1 < end ? i + 1 : -1;
                previous[i] = i > first ? i - 1 : -1;
                groupSize[i] = 1;
                nextMember[i] = -1;
                lastMember[i] = i;
            }
            fromMean = new double[n];
            for (int i = first; i < end; i++) {
                fromMean[i] = distance(values, i * dimV, mean, 0, dimV);
            }
            for (int i = first; i < end; i++) {
                price(i);
            }
            heap = new IndexedHeap(cost, first, end);
        }

        /** Sets the cheapest operation of a group and its cost. */
        private void price(int a) {
            double evict = rate[a] * Math.sqrt(fromMean[a]);
            cost[a] = evict;
            merging[a] = false;
            int b = next[a];
            if (b < 0 || groupSize[a] + groupSize[b] > largestGroup || rate[a] == 0 || rate[b] == 0) {
                return; // what nobody attends to has nothing to give to a merged cell
            }
            double m = rate[a] + rate[b];
            double wa = rate[a] / m;
            double wb = 1 - wa;
            boolean untouched = b == a + 1 && groupSize[a] == 1 && groupSize[b] == 1;
            double keysApart = untouched ? keySteps[a] : distance(keys, a * dimK, keys, b * dimK, dimK);
            double apart = Math.sqrt(untouched ? valueSteps[a] : distance(values, a * dimV, values, b * dimV, dimV));
            double sigma = Math.sqrt(keyCost * keysApart / dimK);
            // |w_a V_a + w_b V_b - mean|^2 by the parallelogram identity, from distances at hand.
            double mergedFromMean =
                    Math.sqrt(Math.max(0, wa * fromMean[a] + wb * fromMean[b] - wa * wb * apart * apart));
            double merge = m * wa * wb * sigma * (apart + sigma / 2 * mergedFromMean);
            if (merge < evict) {
                cost[a] = merge;
                merging[a] = true;
            }
        }

        Plan reduceBy(int operations) {
            boolean[] evicted = new boolean[n];
            for (int k = 0; k < operations; k++) {
                int a = heap.smallest();
                if (merging[a]) {
                    absorb(a, next[a]);
                } else {
                    heap.remove(a);
                    unlink(a);
                    for (int member = a; member >= 0; member = nextMember[member]) {
                        evicted[member] = true;
                    }
                    reprice(previous[a]);
                }
            }
            return plan(evicted);
        }

        /** Merges b, the group after a, into a. */
        private void absorb(int a, int b) {
            double m = rate[a] + rate[b];
            float wb = (float) (rate[b] / m);
            mix(keys, a * dimK, b * dimK, dimK, wb);
            mix(values, a * dimV, b * dimV, dimV, wb);
            fromMean[a] = distance(values, a * dimV, mean, 0, dimV);
            rate[a] = m;
            groupSize[a] += groupSize[b];
            nextMember[lastMember[a]] = b;
            lastMember[a] = lastMember[b];
            heap.remove(b);
            unlink(b);
            reprice(a);
            reprice(previous[a]);
        }

        private void unlink(int a) {
            if (previous[a] >= 0) {
                next[previous[a]] = next[a];
            }
            if (next[a] >= 0) {
                previous[next[a]] = previous[a];
            }
        }

        private void reprice(int a) {
            if (a >= 0) {
                price(a);
                heap.changed(a);
            }
        }

        private Plan plan(boolean[] evicted) {
            Plan.Builder plan = Plan.builder(n);
            for (int a = first; a < end; a++) {
                if (evicted[a]) {
                    plan.evict(a);
                }
            }
            for (int a = first; a < end; a++) {
                boolean leads = !evicted[a] && heap.contains(a) && groupSize[a] > 1;
                if (leads) {
                    int[] members = new int[groupSize[a]];
                    double[] masses = new double[groupSize[a]];
                    int k = 0;
                    for (int member = a; member >= 0; member = nextMember[member]) {
                        members[k] = member;
                        masses[k++] = memberRate[member];
                    }
                    plan.merge(members, masses);
                }
            }
            return plan.build();
        }
    }

    private static void mix(float[] x, int a, int b, int n, float share) {
        for (int i = 0; i < n; i++) {
            x[a + i] += share * (x[b + i] - x[a + i]);
        }
    }

    /** Squared distance of two vectors; four sums at once, since Java may not reorder one. */
    private static double distance(float[] x, int a, float[] y, int b, int n) {
        float s0 = 0;
        float s1 = 0;
        float s2 = 0;
        float s3 = 0;
        int i = 0;
        for (; i + 4 <= n; i += 4) {
            float d0 = x[a + i] - y[b + i];
            float d1 = x[a + i + 1] - y[b + i + 1];
            float d2 = x[a + i + 2] - y[b + i + 2];
            float d3 = x[a + i + 3] - y[b + i + 3];
            s0 += d0 * d0;
            s1 += d1 * d1;
            s2 += d2 * d2;
            s3 += d3 * d3;
        }
        for (; i < n; i++) {
            float d = x[a + i] - y[b + i];
            s0 += d * d;
        }
        return (s0 + s1) + (s2 + s3);
    }
}
