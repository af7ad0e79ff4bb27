package dev.kvmerge.attention;

import dev.kvmerge.KvmergeException;

/**
 * How to foresee, for each layer and KV head of a model, the attention that a token will get: a log-linear (Poisson) regression, fitted to a
 * full run over other texts. Per query that is to come, the expected sum over query heads of attention to the power 1.5 is
 *
 * <pre>
 *   exp(w_0 + w_1 log r_i + w_2 log r_{i-1} + w_3 log r_{i+1} + w_4 log age + w_5 log |V_i| + k . K_i)
 * </pre>
 *
 * with r the rates of attention received so far of a cell and its neighbours, and K the key as it was before its rotation. Heads look for kinds of
 * tokens, and the key says of what kind a token is: that part is known when the token comes, before anyone has attended to it.
 *
 * @param name where it comes from, for the record
 * @param layers of the model
 * @param kvHeads a layer
 * @param keyDimension elements a key
 * @param decay factor on the attention received at each block that the weights were fitted for
 * @param weights [layer * kvHeads + kvHead][6 + keyDimension]: w_0 to w_5, then k
 */
public record Calibration(String name, int layers, int kvHeads, int keyDimension, double decay, float[][] weights) {
    /** Weights before the key's. */
    public static final int SCALARS = 6;

    private static final double LEAST_RATE = 1e-6;
    private static final double LEAST_NORM = 1e-3;
    private static final float LARGEST = 88; // the exponential of more is no float
    private static final double[] LOGS =
            new double[1 << 13]; // of ages: a logarithm a cell is what planning can do without

    static {
        for (int i = 1; i < LOGS.length; i++) {
            LOGS[i] = Math.log(i);
        }
    }

    public Calibration {
        if (weights == null || weights.length != layers * kvHeads || !(decay >= 0 && decay <= 1)) {
            throw new KvmergeException("the calibration '" + name + "' does not hold weights for each of " + layers
                    + " layers with " + kvHeads + " KV heads: make it again with 'kvmerge calibrate'");
        }
        for (float[] head : weights) {
            boolean whole = head != null && head.length == SCALARS + keyDimension;
            for (int i = 0; whole && i < head.length; i++) {
                whole = Float.isFinite(head[i]);
            }
            if (!whole) {
                throw new KvmergeException("the calibration '" + name + "' has a head without its "
                        + (SCALARS + keyDimension) + " finite weights: make it again with 'kvmerge calibrate'");
            }
        }
    }

    /** Refuses a model of another shape. */
    public void check(int modelLayers, int modelKvHeads) {
        if (modelLayers != layers || modelKvHeads != kvHeads) {
            throw new KvmergeException("the calibration '" + name + "' is for " + layers + " layers with " + kvHeads
                    + " KV heads, the model has " + modelLayers + " with " + modelKvHeads
                    + ": make one with 'kvmerge calibrate', or use --calibration none");
        }
    }

    private static double logAge(int age) {
        return age < LOGS.length ? LOGS[age] : Math.log(age);
    }

    /** The logarithm of a rate, as the regression takes it. */
    public static double logRate(double rate) {
        return Math.log(rate + LEAST_RATE);
    }

    /** The logarithm of a value's length, as the regression takes it. */
    public static double logNorm(float[] values, int cell, int dimension) {
        return Math.log(Math.sqrt(dot(values, cell * dimension, values, cell * dimension, dimension)) + LEAST_NORM);
    }

    /**
     * The part of the sum that is known when a token comes.
     *
     * @param pair layer * kvHeads + kvHead
     * @param keys [cells][keyDimension], before their rotation
     * @param values [cells][valueDimension]
     * @return [cells]
     */
    public float[] prior(int pair, float[] keys, float[] values) {
        float[] w = weights[pair];
        int n = keys.length / keyDimension;
        int valueDimension = values.length / n;
        float[] prior = new float[n];
        for (int i = 0; i < n; i++) {
            prior[i] = (float) (w[0]
                    + w[5] * logNorm(values, i, valueDimension)
                    + dot(w, SCALARS, keys, i * keyDimension, keyDimension));
        }
        return prior;
    }

    /** Four sums at once, since Java may not reorder one. */
    private static double dot(float[] x, int a, float[] y, int b, int n) {
        float s0 = 0;
        float s1 = 0;
        float s2 = 0;
        float s3 = 0;
        int i = 0;
        for (; i + 4 <= n; i += 4) {
            s0 += x[a + i] * y[b + i];
            s1 += x[a + i + 1] * y[b + i + 1];
            s2 += x[a + i + 2] * y[b + i + 2];
            s3 += x[a + i + 3] * y[b + i + 3];
        }
        for (; i < n; i++) {
            s0 += x[a + i] * y[b + i];
        }
        return (s0 + s1) + (s2 + s3);
    }

    /** The attention that each cell is expected to get from a query to come. */
    public double[] expected(CellStats cells) {
        float[] w = weights[cells.layer() * kvHeads + cells.kvHead()];
        int n = cells.size();
        float[] log = new float[n];
        for (int i = 0; i < n; i++) {
            log[i] = Approximate.log((float) (cells.rate(i) + LEAST_RATE));
        }
        double[] expected = new double[n];
        for (int i = 0; i < n; i++) {
            float before = log[Math.max(i - 1, 0)];
            float after = log[Math.min(i + 1, n - 1)];
            float age = (float) logAge(cells.newest() + 1 - cells.position()[i]);
            expected[i] = Approximate.exp(
                    Math.min(LARGEST, cells.prior()[i] + w[1] * log[i] + w[2] * before + w[3] * after + w[4] * age));
        }
        return expected;
    }
}
