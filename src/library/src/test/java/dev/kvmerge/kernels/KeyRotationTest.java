package dev.kvmerge.kernels;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.Arrays;
import java.util.List;
import java.util.Random;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;

@net.jqwik.api.Tag("fast")
class KeyRotationTest {
    /** Turned and, where asked, multiplied by Hadamard's matrix, by definition, in double precision. */
    private static double[] cached(double[] key, KeyRotation r, int position) {
        double[] turned = key.clone();
        int pairs = r.frequency().length;
        for (int j = 0; j < pairs; j++) {
            int a = r.neox() ? j : 2 * j;
            int b = r.neox() ? j + pairs : 2 * j + 1;
            double angle = position * r.frequency()[j];
            turned[a] = key[a] * Math.cos(angle) - key[b] * Math.sin(angle);
            turned[b] = key[a] * Math.sin(angle) + key[b] * Math.cos(angle);
        }
        if (r.hadamard() == 0) {
            return turned;
        }
        double[] stored = new double[key.length];
        for (int i = 0; i < key.length; i++) {
            int run = i / r.hadamard() * r.hadamard();
            for (int j = 0; j < r.hadamard(); j++) {
                int sign = Integer.bitCount((i - run) & j) % 2 == 0 ? 1 : -1;
                stored[i] += sign * turned[run + j] / Math.sqrt(r.hadamard());
            }
        }
        return stored;
    }

    @Property(tries = 100)
    void undoingGivesTheKeyBack(@ForAll long seed) {
        Random random = new Random(seed);
        int dimension = 16 << random.nextInt(3);
        int pairs = random.nextInt(dimension / 2 + 1);
        double[] frequency = random.doubles(pairs).map(x -> Math.pow(1e4, -x)).toArray();
        KeyRotation rotation =
                new KeyRotation(frequency, random.nextBoolean(), random.nextBoolean() ? 0 : 8 << random.nextInt(2));
        int n = 1 + random.nextInt(5);
        int[] positions = random.ints(n, 0, 9000).toArray();
        float[] keys = new float[n * dimension];
        float[] expected = new float[n * dimension];
        for (int i = 0; i < n; i++) {
            double[] key = random.doubles(dimension, -2, 2).toArray();
            double[] stored = cached(key, rotation, positions[i]);
            for (int d = 0; d < dimension; d++) {
                keys[i * dimension + d] = (float) stored[d];
                expected[i * dimension + d] = (float) key[d];
            }
        }
        rotation.undo(positions, keys);
        assertArrayEquals(expected, keys, 3e-6f);
        assertEquals(rotation, new KeyRotation(frequency.clone(), rotation.neox(), rotation.hadamard()));
        assertEquals(
                rotation.hashCode(),
                new KeyRotation(frequency.clone(), rotation.neox(), rotation.hadamard()).hashCode());
    }

    /** The mean and covariance of queries that are turned by the mean of rotations, each made one by one. */
    @Property(tries = 50)
    void expectedQueriesAreTurnedByTheMeanRotation(@ForAll long seed) {
        Random random = new Random(seed);
        int d = 8;
        double[] frequency = {1, 0.1, 0.01};
        KeyRotation rotation = new KeyRotation(frequency, random.nextBoolean(), random.nextBoolean() ? 0 : 4);
        int next = random.nextInt(1000);
        int positions = 1 + random.nextInt(20);
        double[][] turn = new double[d][]; // row i: where the unit vector i comes to
        for (int i = 0; i < d; i++) {
            double[] unit = new double[d];
            unit[i] = 1;
            double[] sum = new double[d];
            for (int p = next; p < next + positions; p++) {
                double[] turned = cached(unit, rotation, p);
                Arrays.setAll(sum, j -> sum[j] + turned[j] / positions);
            }
            turn[i] = sum;
        }
        float[] mean = new float[d];
        float[] second = new float[d * d];
        for (int q = 0; q < 5; q++) {
            double[] query = random.doubles(d, -1, 1).toArray();
            for (int i = 0; i < d; i++) {
                mean[i] += (float) (query[i] / 5);
                for (int j = 0; j < d; j++) {
                    second[i * d + j] += (float) (query[i] * query[j] / 5);
                }
            }
        }
        QueryHeads heads = new QueryHeads(List.of(new Observer.QueryMoments(mean, second)), rotation, next);
        QueryHeads.Expected found = heads.expected(positions).get(0);
        for (int i = 0; i < d; i++) {
            double expected = 0;
            for (int a = 0; a < d; a++) {
                expected += turn[a][i] * mean[a];
            }
            assertEquals(expected, found.mean()[i], 1e-6);
            for (int j = 0; j < d; j++) {
                double covariance = 0;
                for (int a = 0; a < d; a++) {
                    for (int b = 0; b < d; b++) {
                        covariance += turn[a][i] * (second[a * d + b] - (double) mean[a] * mean[b]) * turn[b][j];
                    }
                }
                assertEquals(covariance, found.covariance()[i * d + j], 1e-6);
            }
        }
        assertThrows(IllegalArgumentException.class, () -> heads.expected(0));
    }
}
