package dev.kvmerge.kernels;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("native")
class ScorerTest {
    @BeforeAll
    static void load() {
        TestModel.library();
    }

    @Test
    void scoresAndComparesAsTheDefinitionsSay() {
        Random random = new Random(5);
        int vocabulary = 1003;
        int rows = 7;
        Scorer scorer = new Scorer(vocabulary, 2);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment a = arena.allocate(ValueLayout.JAVA_FLOAT, (long) rows * vocabulary);
            MemorySegment b = arena.allocate(ValueLayout.JAVA_FLOAT, (long) rows * vocabulary);
            for (long i = 0; i < (long) rows * vocabulary; i++) {
                float x = (float) (5 * random.nextGaussian());
                a.setAtIndex(ValueLayout.JAVA_FLOAT, i, x);
                b.setAtIndex(ValueLayout.JAVA_FLOAT, i, x + (float) (0.2 * random.nextGaussian()));
            }
            int[] targets = random.ints(rows, 0, vocabulary).toArray();
            double[] nll = scorer.negativeLogLikelihood(a, targets);
            MemorySegment packed = arena.allocate((long) rows * scorer.packedRowBytes(), 8);
            scorer.pack(a, rows, packed);
            Scorer.Divergence d = scorer.divergence(packed, b, rows);
            for (int r = 0; r < rows; r++) {
                double[] logP = logSoftmax(a, r, vocabulary);
                double[] logQ = logSoftmax(b, r, vocabulary);
                double kl = 0;
                for (int i = 0; i < vocabulary; i++) {
                    kl += Math.exp(logP[i]) * (logP[i] - logQ[i]);
                }
                assertEquals(-logP[targets[r]], nll[r], 1e-5);
                assertEquals(kl, d.kl()[r], 1e-4);
                assertEquals(argmax(logP) == argmax(logQ), d.sameTop()[r]);
            }
            Scorer.Divergence self = scorer.divergence(packed, a, rows);
            for (int r = 0; r < rows; r++) {
                assertEquals(0, self.kl()[r], 1e-6);
                assertTrue(self.sameTop()[r]);
            }
        }
    }

    @Test
    void refusesWhatWouldReadOutside() {
        Scorer scorer = new Scorer(10, 1);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment small = arena.allocate(ValueLayout.JAVA_FLOAT, 10);
            assertThrows(IllegalArgumentException.class, () -> scorer.negativeLogLikelihood(small, new int[] {1, 2}));
            assertThrows(KvmergeException.class, () -> scorer.negativeLogLikelihood(small, new int[] {10}));
            assertThrows(IllegalArgumentException.class, () -> scorer.pack(small, 1, arena.allocate(8)));
            assertThrows(IllegalArgumentException.class, () -> scorer.pack(small, -1, small));
            assertThrows(IllegalArgumentException.class, () -> new Scorer(0, 1));
            Scorer large = new Scorer(1 << 28, 1); // 2^30 bytes a row: so many rows are 2^64, which is 0 as a long
            assertThrows(IllegalArgumentException.class, () -> large.pack(small, Integer.MAX_VALUE, small));
            assertThrows(IllegalArgumentException.class, () -> large.divergence(small, small, 1 << 30));
            assertThrows(IllegalArgumentException.class, () -> large.negativeLogLikelihood(small, new int[1 << 16]));
        }
    }

    @Test
    void entropyOfKnownRows() {
        assertArrayEquals(
                new float[] {1, 0, 1},
                Scorer.rowEntropy(new float[][] {{.25f, .25f, .25f, .25f}, {0, 1, 0, 0}, {.5f, 0, 0, .5f}}),
                5e-6f);
        assertThrows(KvmergeException.class, () -> Scorer.rowEntropy(new float[][] {{Float.NaN, 1}}));
    }

    private static double[] logSoftmax(MemorySegment rows, int r, int n) {
        double[] x = new double[n];
        double sum = 0;
        for (int i = 0; i < n; i++) {
            x[i] = rows.getAtIndex(ValueLayout.JAVA_FLOAT, (long) r * n + i);
            sum += Math.exp(x[i]);
        }
        for (int i = 0; i < n; i++) {
            x[i] -= Math.log(sum);
        }
        return x;
    }

    private static int argmax(double[] x) {
        int best = 0;
        for (int i = 1; i < x.length; i++) {
            best = x[i] > x[best] ? i : best;
        }
        return best;
    }
}
