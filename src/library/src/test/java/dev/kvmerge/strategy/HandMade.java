package dev.kvmerge.strategy;

import dev.kvmerge.TestModel;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.KeyRotation;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.kernels.QueryHeads;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;

/** Cells of a few tokens, for tests of strategies. */
final class HandMade {
    static final int DIM = 4; // elements of a key, and of a value

    static {
        TestModel.loadKernels();
    }

    private HandMade() {}

    static CellStats cells(float[] mass, float[] entropy, float[] keys, float[] values) {
        int n = mass.length;
        int[] count = new int[n];
        Arrays.fill(count, 1);
        return new CellStats(
                0,
                0,
                IntStream.range(0, n).toArray(),
                mass,
                exposure(IntStream.range(0, n).toArray()),
                entropy,
                count,
                new float[n],
                vectors(keys, values),
                null);
    }

    /** Of tokens that no block has decayed: as many as are newer, and itself. */
    static float[] exposure(int[] position) {
        float[] exposure = new float[position.length];
        for (int i = 0; i < exposure.length; i++) {
            exposure[i] = position[position.length - 1] - position[i] + 1;
        }
        return exposure;
    }

    static CellVectors vectors(float[] keys, float[] values) {
        return CellVectors.of(keys.length / DIM, keys, values);
    }

    static CellStats random(int n, long seed) {
        Random random = new Random(seed);
        float[] mass = new float[n];
        float[] entropy = new float[n];
        int[] position = new int[n];
        int[] count = new int[n];
        for (int i = 0; i < n; i++) {
            mass[i] = random.nextInt(4) == 0 ? 0 : random.nextFloat();
            entropy[i] = random.nextFloat();
            position[i] = (i == 0 ? 0 : position[i - 1]) + 1 + random.nextInt(3);
            count[i] = 1 + random.nextInt(3);
        }
        float[] keys = new float[n * DIM];
        float[] values = new float[n * DIM];
        for (int i = 0; i < keys.length; i++) {
            keys[i] = (float) random.nextGaussian();
            values[i] = (float) random.nextGaussian();
        }
        float[] mean = new float[DIM];
        float[] second = new float[DIM * DIM];
        for (int i = 0; i < DIM; i++) {
            mean[i] = (float) random.nextGaussian() / 2;
            second[i * DIM + i] = 1 + mean[i] * mean[i];
        }
        CellStats cells = new CellStats(
                1,
                2,
                position,
                mass,
                exposure(position),
                entropy,
                count,
                new float[n],
                vectors(keys, values),
                () -> new Observer.QueryMoments(mean, second));
        KeyRotation rotation = new KeyRotation(new double[] {1, 0.01}, false, 0);
        int next = position[n - 1] + 1;
        return cells.withQueryHeads(
                () -> new QueryHeads(List.of(new Observer.QueryMoments(mean, second)), rotation, next));
    }

    static float[] ones(int n) {
        float[] x = new float[n * DIM];
        Arrays.fill(x, 1);
        return x;
    }
}
