package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Needs;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Observer;

/**
 * The cells that queries like those seen of late are expected to attend to, times the norm of their values. Devoto et
 * al. 2025, "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution": with
 * queries taken as Gaussian, mean mu and covariance S,
 *
 * <pre>score = (softmax(k.mu / sqrt(d) + k'S k / 2d) + epsilon) |v|</pre>
 *
 * <p>The paper takes the moments before RoPE and averages the rotation over positions to come; here they are of the
 * rotated queries of the last blocks, decayed.
 *
 * @param sinks first tokens that always stay
 * @param epsilon added to the probabilities: kvpress' 0; the paper's .02 outweighs nearly all of them
 */
public record ExpectedAttention(int sinks, double epsilon) implements Strategy {
    public ExpectedAttention {
        Check.sinks(sinks);
        Check.notNegative("epsilon", epsilon);
    }

    @Override
    public String name() {
        return "expected-attention";
    }

    @Override
    public Needs needs() {
        return Needs.NOTHING.withQueries();
    }

    @Override
    public int fewestCells(int block) {
        return Check.sum(sinks, 1);
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        double[] expected = probabilities(cells.keys(), cells.queries(), n, Math.min(sinks, n - 1));
        float[] values = cells.values();
        int dim = values.length / n;
        double[] score = new double[n];
        for (int i = 0; i < n; i++) {
            score[i] = (expected[i] + epsilon) * Vectors.norm(values, i, dim);
        }
        int first = Math.min(sinks, budget - 1);
        return Selection.keepLargestAndNewest(n, n - 1, budget, i -> i < first ? Double.MAX_VALUE : score[i]);
    }

    /** softmax over cells of the log of E[exp(q.k / sqrt(d))]. */
    static double[] probabilities(float[] keys, Observer.QueryMoments queries, int n, int from) {
        float[] mu = queries.mean();
        int d = mu.length;
        double[] log = new double[n];
        double max = Double.NEGATIVE_INFINITY;
        for (int i = from; i < n; i++) {
            double mean = 0;
            double square = 0; // k' E[qq'] k
            for (int a = 0; a < d; a++) {
                float ka = keys[i * d + a];
                mean += ka * mu[a];
                double row = 0;
                for (int b = 0; b < d; b++) {
                    row += queries.second()[a * d + b] * keys[i * d + b];
                }
                square += ka * row;
            }
            log[i] = mean / Math.sqrt(d) + Math.max(0, square - mean * mean) / (2 * d);
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
