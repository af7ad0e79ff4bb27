package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.QueryHeads.Expected;
import java.util.Arrays;

/**
 * The cells that queries to come are expected to attend to, times the norm of their values. Devoto et al. 2025,
 * "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution": with a query
 * head's queries taken as Gaussian before their rotation, and the rotation averaged over the positions to come, mean mu
 * and covariance S give
 *
 * <pre>score = (mean over query heads of softmax(k.mu / sqrt(d) + k'S k / 2d) + epsilon) |v|</pre>
 *
 * <p>The paper takes the moments of the whole prompt but its sinks, here they are of some of each block's tokens,
 * decayed by block.
 *
 * @param sinks first tokens that always stay
 * @param epsilon added to the probabilities: kvpress' 0; the paper's .02 outweighs nearly all of them
 * @param future positions to come
 */
public record ExpectedAttention(int sinks, double epsilon, int future) implements Strategy {
    public ExpectedAttention {
        Check.sinks(sinks);
        Check.notNegative("epsilon", epsilon);
        if (future < 1) {
            throw new KvmergeException.Usage("future is a number of positions to come, at least 1, not " + future);
        }
    }

    @Override
    public String name() {
        return "expected-attention";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withQueryHeads();
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, 1);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        double[] score = new double[n];
        for (Expected head : cells.queryHeads().expected(future)) {
            double[] expected = probabilities(cells.keys(), head, n, Math.min(sinks, n - 1));
            for (int i = 0; i < n; i++) {
                score[i] += expected[i];
            }
        }
        int heads = cells.queryHeads().heads().size();
        float[] values = cells.values();
        int dim = values.length / n;
        for (int i = 0; i < n; i++) {
            score[i] = (score[i] / heads + epsilon) * Vectors.norm(values, i, dim);
        }
        int first = Math.min(sinks, budget - 1);
        return Selection.keepLargestAndNewest(n, n - 1, budget, i -> i < first ? Double.MAX_VALUE : score[i]);
    }

    /** softmax over the cells from `from` on of the log of E[exp(q.k)]. */
    static double[] probabilities(float[] keys, Expected queries, int n, int from) {
        double[] mu = queries.mean();
        int d = mu.length;
        double[] product = new double[d];
        double[] log = new double[n];
        double max = Double.NEGATIVE_INFINITY;
        for (int i = from; i < n; i++) {
            double mean = 0;
            double variance = 0; // k' S k
            Arrays.fill(product, 0);
            for (int a = 0; a < d; a++) {
                double ka = keys[i * d + a];
                mean += ka * mu[a];
                for (int b = 0; b < d; b++) {
                    product[b] += ka * queries.covariance()[a * d + b];
                }
            }
            for (int b = 0; b < d; b++) {
                variance += product[b] * keys[i * d + b];
            }
            log[i] = mean + Math.max(0, variance) / 2;
            max = Math.max(max, log[i]);
        }
        double sum = 0;
        for (int i = from; i < n; i++) {
            log[i] = Math.exp(log[i] - max);
            sum += log[i];
        }
        for (int i = from; i < n; i++) {
            log[i] /= sum;
        }
        return log;
    }
}
