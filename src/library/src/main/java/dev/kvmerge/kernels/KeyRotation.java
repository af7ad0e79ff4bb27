package dev.kvmerge.kernels;

import java.util.Arrays;

/**
 * The rotation (RoPE, Su et al. 2021) that a layer's cached keys carry.
 *
 * @param frequency [pairs], radians a position; none when the keys carry no rotation
 * @param neox whether dimension i turns with i + pairs; else 2i turns with 2i + 1
 * @param hadamard size of the Hadamard matrices that the rotated keys were multiplied by for storage; 0 for none
 */
public record KeyRotation(double[] frequency, boolean neox, int hadamard) {
    /**
     * Turns keys back to what they were before the rotation, in place.
     *
     * @param keys [positions][dimension], as cached
     */
    public void undo(int[] positions, float[] keys) {
        if (positions.length == 0 || keys.length % positions.length != 0) {
            throw new IllegalArgumentException(keys.length + " elements of keys at " + positions.length + " positions");
        }
        int dimension = keys.length / positions.length;
        if (2 * frequency.length > dimension || hadamard > 0 && dimension % hadamard != 0) {
            throw new IllegalArgumentException("keys of " + dimension + " elements, rotated by " + frequency.length
                    + " pairs and matrices of " + hadamard);
        }
        int pairs = frequency.length;
        for (int i = 0; i < positions.length; i++) {
            int at = i * dimension;
            if (hadamard > 0) {
                hadamard(keys, at, dimension);
            }
            for (int j = 0; j < pairs; j++) {
                int a = at + (neox ? j : 2 * j);
                int b = at + (neox ? j + pairs : 2 * j + 1);
                float c = (float) Math.cos(positions[i] * frequency[j]);
                float s = (float) Math.sin(positions[i] * frequency[j]);
                float x = keys[a];
                float y = keys[b];
                keys[a] = x * c + y * s;
                keys[b] = y * c - x * s;
            }
        }
    }

    /**
     * The mean of the rotations to positions from, from + 1, ..., and then the Hadamard matrices.
     *
     * @param positions how many, at least 1
     */
    Mean mean(int from, int positions) {
        if (positions < 1) {
            throw new IllegalArgumentException("the mean of " + positions + " rotations: there is at least one");
        }
        double[] cosine = new double[frequency.length];
        double[] sine = new double[frequency.length];
        for (int j = 0; j < frequency.length; j++) {
            for (int i = 0; i < positions; i++) {
                cosine[j] += Math.cos((from + i) * frequency[j]) / positions;
                sine[j] += Math.sin((from + i) * frequency[j]) / positions;
            }
        }
        return new Mean(cosine, sine);
    }

    /** Several rotations' mean, as a linear map. */
    final class Mean {
        private final double[] cosine;
        private final double[] sine;

        private Mean(double[] cosine, double[] sine) {
            this.cosine = cosine;
            this.sine = sine;
        }

        /** Maps the vector of the elements at, at + step, ..., of which there are n, in place. */
        void apply(double[] x, int at, int step, int n) {
            int pairs = cosine.length;
            for (int j = 0; j < pairs; j++) {
                int a = at + step * (neox ? j : 2 * j);
                int b = at + step * (neox ? j + pairs : 2 * j + 1);
                double first = x[a];
                double second = x[b];
                x[a] = first * cosine[j] - second * sine[j];
                x[b] = second * cosine[j] + first * sine[j];
            }
            for (int half = 1; half < hadamard; half *= 2) {
                for (int i = 0; i < n; i++) {
                    if ((i & half) == 0) {
                        double first = x[at + step * i];
                        double second = x[at + step * (i + half)];
                        x[at + step * i] = (first + second) / Math.sqrt(2);
                        x[at + step * (i + half)] = (first - second) / Math.sqrt(2);
                    }
                }
            }
        }
    }

    /** An orthonormal Walsh-Hadamard transform of each run: its own inverse. */
    private void hadamard(float[] x, int at, int dimension) {
        float norm = (float) (1 / Math.sqrt(hadamard));
        for (int half = 1; half < hadamard; half *= 2) {
            for (int i = at; i < at + dimension; i += 2 * half) {
                for (int j = i; j < i + half; j++) {
                    float a = x[j];
                    float b = x[j + half];
                    x[j] = a + b;
                    x[j + half] = a - b;
                }
            }
        }
        for (int i = at; i < at + dimension; i++) {
            x[i] *= norm;
        }
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof KeyRotation r
                && Arrays.equals(frequency, r.frequency)
                && neox == r.neox
                && hadamard == r.hadamard;
    }

    @Override
    public int hashCode() {
        return Arrays.hashCode(frequency) * 31 + hadamard;
    }
}
