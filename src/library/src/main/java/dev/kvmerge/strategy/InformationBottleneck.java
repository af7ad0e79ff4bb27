package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Observer;
import java.util.Objects;

/**
 * Merges the neighbours whose union says least less of the query: the agglomerative information bottleneck (Slonim and
 * Tishby 1999) of which cell a query attends to. Cells a and b have masses m and columns p(query | cell); merging them
 * loses
 *
 * <pre>(m_a + m_b) JS(p(q | a), p(q | b)),   weighted by m,</pre>
 *
 * <p>of the information between query and cell. The columns are not kept, but their logarithms differ by s_a(q) -
 * s_b(q), up to a constant: with queries of covariance S that has the variance sigma^2 = (K_a - K_b)' S (K_a - K_b) /
 * d, and to second order JS = w_a w_b sigma^2 / 2, never more than H(w). Nothing is dropped, and values are not asked.
 *
 * @param sinks first tokens that always stay
 * @param recentShare share of the budget that the newest tokens have for themselves
 * @param decay what 128 tokens leave of attention and exposure, 0..1
 * @param bias how merged cells keep their mass
 */
public record InformationBottleneck(int sinks, double recentShare, double decay, Bias bias) implements Strategy {
    public InformationBottleneck {
        Middle.check(sinks, recentShare);
        Check.decay(decay);
        Objects.requireNonNull(bias, "bias");
    }

    @Override
    public String name() {
        return "entropy-merged-ib";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withMassDecay(decay).withQueries().withBias(bias);
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, Math.max(block, 2)); // one to merge, and the newest
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        int first = Math.min(sinks, budget - 2);
        int end = Middle.end(cells, first + 1, budget, recentShare); // a cell at least for what merges
        Merging merging = new Merging(cells);
        for (int operation = 0; operation < n - budget; operation++) {
            int best = first;
            for (int a = first; merging.next[a] < end; a = merging.next[a]) {
                best = merging.loss[a] < merging.loss[best] ? a : best;
            }
            merging.merge(best, first);
        }
        return merging.plan();
    }

    /** What two cells' columns differ by, in nats: the Jensen-Shannon divergence to second order, at most H(w). */
    static double divergence(double share, double variance) {
        double other = 1 - share;
        double entropy = share <= 0 || other <= 0 ? 0 : -share * Math.log(share) - other * Math.log(other);
        return Math.min(share * other * variance / 2, entropy);
    }

    /** Cells that merge with the one after them. */
    private static final class Merging {
        private final int n;
        private final int dim;
        private final double[] mass;
        private final float[] key;
        private final double[][] covariance;
        private final double[] own; // what each cell received by itself
        private final int[] next; // the first cell of the group after this one; n at the end
        private final int[] previous;
        private final double[] loss; // of merging a group with the next

        Merging(CellStats cells) {
            n = cells.size();
            dim = cells.keys().length / n;
            key = cells.keys().clone();
            covariance = covariance(cells.queries());
            own = new double[n];
            next = new int[n];
            previous = new int[n];
            loss = new double[n];
            for (int i = 0; i < n; i++) {
                own[i] = cells.rate(i);
                next[i] = i + 1;
                previous[i] = i - 1;
            }
            mass = own.clone();
            for (int i = 0; i < n; i++) {
                price(i);
            }
        }

        private static double[][] covariance(Observer.QueryMoments queries) {
            int d = queries.mean().length;
            double[][] s = new double[d][d];
            for (int i = 0; i < d; i++) {
                for (int j = 0; j < d; j++) {
                    s[i][j] = queries.second()[i * d + j] - (double) queries.mean()[i] * queries.mean()[j];
                }
            }
            return s;
        }

        private void price(int a) {
            int b = next[a];
            if (b >= n) {
                loss[a] = Double.POSITIVE_INFINITY;
                return;
            }
            double both = mass[a] + mass[b];
            loss[a] = both > 0 ? both * divergence(mass[a] / both, variance(a, b)) : 0;
        }

        private double variance(int a, int b) {
            double[] difference = new double[dim];
            for (int i = 0; i < dim; i++) {
                difference[i] = key[a * dim + i] - key[b * dim + i];
            }
            double sum = 0;
            for (int i = 0; i < dim; i++) {
                double row = 0;
                for (int j = 0; j < dim; j++) {
                    row += covariance[i][j] * difference[j];
                }
                sum += difference[i] * row;
            }
            return Math.max(0, sum / dim);
        }

        /** Merges a group with the next. */
        void merge(int a, int first) {
            int b = next[a];
            double both = mass[a] + mass[b];
            double share = both > 0 ? mass[a] / both : 0.5;
            for (int i = 0; i < dim; i++) {
                key[a * dim + i] = (float) (share * key[a * dim + i] + (1 - share) * key[b * dim + i]);
            }
            mass[a] = both;
            next[a] = next[b];
            if (next[a] < n) {
                previous[next[a]] = a;
            }
            price(a);
            if (a > first) {
                price(previous[a]);
            }
        }

        Plan plan() {
            Plan.Builder plan = Plan.builder(n);
            for (int a = 0; a < n; a = next[a]) {
                int size = next[a] - a;
                if (size > 1) {
                    int[] members = new int[size];
                    double[] masses = new double[size];
                    for (int m = 0; m < size; m++) {
                        members[m] = a + m;
                        masses[m] = own[a + m];
                    }
                    plan.merge(members, masses);
                }
            }
            return plan.build();
        }
    }
}
