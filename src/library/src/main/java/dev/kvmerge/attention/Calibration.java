package dev.kvmerge.attention;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Foresight;
import java.nio.ByteBuffer;
import java.util.Arrays;

/**
 * How to foresee, for each layer and KV head of a model, the attention that a token will get: a log-linear (Poisson)
 * regression, fitted to a full run over other texts. Per query that is to come, the expected sum over query heads of
 * attention to the power 1.5 is
 *
 * <pre>
 *   exp(w_0 + w_1 log r_i + w_2 log r_{i-1} + w_3 log r_{i+1} + w_4 log age + w_5 log |V_i| + k . K_i)
 * </pre>
 *
 * with r the rates of attention (to the power massPower) received so far of a cell and its neighbours, and K the key as
 * it was before its rotation. Heads look for kinds of tokens, and the key says of what kind a token is: that part is
 * known when the token comes, before anyone has attended to it.
 *
 * @param name where it comes from, for the record
 * @param layers of the model
 * @param kvHeads a layer
 * @param keyDimension elements a key
 * @param decay what 128 tokens leave of the attention received, that the weights were fitted for
 * @param massPower the power of the attention so far that they were fitted for: 1, 1.5 or 2
 * @param weights [layer * kvHeads + kvHead][6 + keyDimension]: w_0 to w_5, then k
 */
public record Calibration(
        String name, int layers, int kvHeads, int keyDimension, double decay, double massPower, float[][] weights) {
    /** Weights before the key's. */
    public static final int SCALARS = 6;

    private static final int DIGEST_DIGITS = 12;
    private static final double LEAST_RATE = 1e-6;
    private static final double LEAST_NORM = 1e-3;

    public Calibration {
        if (!(massPower == 1 || massPower == 1.5 || massPower == 2)) {
            throw new KvmergeException("the calibration '" + name + "' is for the power " + massPower
                    + " of the attention, where there are 1, 1.5 and 2: make it again with 'kvmerge calibrate'");
        }
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

    /**
     * What tells it from others of its name: the first digits of the SHA-256 of all that it foresees with, which is
     * everything but the name. It is the same in every version and in whatever form a file keeps the numbers.
     */
    public String digest() {
        int bytes = 3 * Integer.BYTES + 2 * Double.BYTES + weights.length * (SCALARS + keyDimension) * Float.BYTES;
        ByteBuffer all = ByteBuffer.allocate(bytes);
        all.putInt(layers).putInt(kvHeads).putInt(keyDimension).putDouble(decay).putDouble(massPower);
        for (float[] head : weights) {
            for (float weight : head) {
                all.putFloat(weight);
            }
        }
        return Hash.sha256(all.array()).substring(0, DIGEST_DIGITS);
    }

    /** Refuses a model of another shape. */
    public void check(int modelLayers, int modelKvHeads) {
        if (modelLayers != layers || modelKvHeads != kvHeads) {
            throw new KvmergeException("the calibration '" + name + "' is for " + layers + " layers with " + kvHeads
                    + " KV heads, the model has " + modelLayers + " with " + modelKvHeads
                    + ": make one with 'kvmerge calibrate', or use --calibration none");
        }
    }

    /** Refuses keys of another length. */
    public void checkKeys(int dimension) {
        if (dimension != keyDimension) {
            throw new KvmergeException("the calibration '" + name + "' is for keys of " + keyDimension
                    + " elements, the model's have " + dimension
                    + ": make one with 'kvmerge calibrate', or use --calibration none");
        }
    }

    /** The logarithm of a rate, as the regression takes it. */
    public static double logRate(double rate) {
        return Math.log(rate + LEAST_RATE);
    }

    /** The logarithm of a value's length, as the regression takes it. */
    public static double logLength(double length) {
        return Math.log(length + LEAST_NORM);
    }

    /** A KV head's weights of the key's elements. */
    public float[] keyWeights(int pair) {
        return Arrays.copyOfRange(weights[pair], SCALARS, SCALARS + keyDimension);
    }

    /**
     * The part of the sum that is known when a token comes.
     *
     * @param pair layer * kvHeads + kvHead
     * @param products [cells], of {@link #keyWeights} and each key as it was before its rotation
     * @param lengths [cells], of the values
     * @return [cells]
     */
    public float[] prior(int pair, float[] products, float[] lengths) {
        float[] w = weights[pair];
        float[] prior = new float[products.length];
        for (int i = 0; i < prior.length; i++) {
            prior[i] = (float) (w[0] + w[5] * logLength(lengths[i]) + products[i]);
        }
        return prior;
    }

    /**
     * The attention that each cell is expected to get from a query to come.
     *
     * @param rates [cells], {@link CellStats#rate} of each
     */
    public double[] expected(CellStats cells, double[] rates) {
        float[] w = weights[cells.layer() * kvHeads + cells.kvHead()];
        return Foresight.expected(
                rates, cells.prior(), cells.position(), cells.newest() + 1, LEAST_RATE, Arrays.copyOfRange(w, 1, 5));
    }
}
