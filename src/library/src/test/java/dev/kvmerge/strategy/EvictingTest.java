package dev.kvmerge.strategy;

import static dev.kvmerge.strategy.HandMade.DIM;
import static dev.kvmerge.strategy.HandMade.cells;
import static dev.kvmerge.strategy.HandMade.ones;
import static dev.kvmerge.strategy.HandMade.random;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.QueryHeads;
import java.util.Arrays;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What strategies keep of attention, keys and entropies made by hand. */
@Tag("native")
class EvictingTest {
    @Test
    void streamingLlmKeepsSinksAndTheNewest() {
        Plan plan = new StreamingLlm(2).plan(random(10, 1), 5);
        assertArrayEquals(new int[] {0, 1, -1, -1, -1, -1, -1, 7, 8, 9}, plan.target());
    }

    @Test
    void snapKvKeepsWhatTheNewestQueriesVoteForWithTheNeighbours() {
        float[] mass = {0, 9, 0, 0, 0, 0, 0, 4, 4, 4, 0, 0};
        // Pooled over 3: cell 1 and its neighbours 3 each, cells 6..10 4/3, 8/3, 4, 8/3, 4/3.
        Plan plan = new SnapKv(2, 3).plan(cells(mass, new float[12], new float[12 * DIM], new float[12 * DIM]), 6);
        assertArrayEquals(new int[] {0, 1, 2, -1, -1, -1, -1, -1, 8, -1, 10, 11}, plan.target());
    }

    @Test
    void averageMassKeepsAttentionPerPosition() {
        float[] mass = {0, 8, 6, 1, 3, 1};
        // Rates of cells 1..4: 8/5, 6/4, 1/3, 3/2; the sink stays whatever it gets.
        Plan plan = new AverageMass(1, 0.25, 0.9).plan(cells(mass, new float[6], new float[24], new float[24]), 4);
        assertArrayEquals(new int[] {0, 1, 2, -1, -1, 5}, plan.target());
    }

    @Test
    void keyNormKeepsTheSmallestKeys() {
        float[] keys = new float[5 * DIM];
        double[] size = {3, 1, 2, 5, 9};
        for (int i = 0; i < 5; i++) {
            keys[i * DIM + i % DIM] = (float) size[i];
        }
        Plan plan = new KeyNorm().plan(cells(new float[5], new float[5], keys, new float[20]), 3);
        assertArrayEquals(new int[] {-1, 1, 2, -1, 4}, plan.target());
    }

    @Test
    void keyDiffKeepsTheKeysThatPointElsewhere() {
        float[] keys = {1, 0, 0, 0, 2, 0.1f, 0, 0, 0, 3, 0, 0, 5, 0, 0.1f, 0, -1, 0, 0, 0, 1, 0, 0, 0};
        Plan plan = new KeyDiff().plan(cells(new float[6], new float[6], keys, new float[24]), 3);
        assertArrayEquals(
                new int[] {-1, -1, 2, -1, 4, 5}, plan.target()); // the upright one, the opposite one, the newest
    }

    @Test
    void randomIsTheSameEveryTimeAndAnotherForEveryHead() {
        Strategy random = new RandomEviction(1);
        CellStats a = random(50, 1);
        assertArrayEquals(random.plan(a, 20).target(), random.plan(a, 20).target());
        CellStats b = new CellStats(
                1, 3, a.position(), a.mass(), a.exposure(), a.entropy(), a.count(), a.prior(), null, null);
        assertTrue(
                !Arrays.equals(random.plan(a, 20).target(), random.plan(b, 20).target()));
    }

    @Test
    void h2oKeepsHeavyHittersAndTheNewestHalf() {
        float[] mass = {9, 0, 0, 7, 1, 8, 0, 0, 0, 0};
        Plan plan = new H2o(0.5).plan(cells(mass, new float[10], new float[10 * DIM], new float[10 * DIM]), 4);
        assertArrayEquals(new int[] {0, -1, -1, -1, -1, 5, -1, -1, 8, 9}, plan.target());
    }

    @Test
    void tovaKeepsWhatTheNewestTokenAttendsTo() {
        Tova tova = new Tova();
        assertEquals(1, tova.needs().massQueries(), "one query");
        assertEquals(0, tova.needs().massDecay(), "of this block");
        Plan plan =
                tova.plan(cells(new float[] {.1f, .5f, .2f, .3f, 0}, new float[5], new float[20], new float[20]), 3);
        assertArrayEquals(new int[] {-1, 1, -1, 3, 4}, plan.target());
    }

    @Test
    void expectedAttentionIsTheMeanOfExpUnderAGaussian() {
        // One dimension of the queries varies: mean 1/2, variance 1/2. E[exp(q k)] = exp(k / 2 + k^2 / 4).
        float[] keys = new float[4 * DIM];
        double[] k = {-2, 0, 1, 2};
        for (int i = 0; i < 4; i++) {
            keys[i * DIM] = (float) k[i];
        }
        double[] mean = {0.5, 0, 0, 0};
        double[] covariance = new double[16];
        covariance[0] = 0.5;
        double[] p = ExpectedAttention.probabilities(keys, new QueryHeads.Expected(mean, covariance), 4, 0);
        double sum = Arrays.stream(k).map(x -> Math.exp(x / 2 + x * x / 4)).sum();
        for (int i = 0; i < 4; i++) {
            assertEquals(Math.exp(k[i] / 2 + k[i] * k[i] / 4) / sum, p[i], 1e-9);
        }
    }

    @Test
    void theOracleKeepsWhatTheFutureAttendsTo() {
        double[] future = {1, 0, 5, 3, 0};
        Strategy oracle =
                new Oracle().knowing((layer, head, position, after) -> after == 4 ? future[position] : Double.NaN);
        Plan plan = oracle.plan(cells(new float[] {9, 9, 0, 0, 0}, new float[5], ones(5), ones(5)), 3);
        assertArrayEquals(new int[] {-1, -1, 2, 3, 4}, plan.target());
        assertThrows(NullPointerException.class, () -> new Oracle().knowing(null));
    }
}
