package dev.kvmerge.strategy;

import static dev.kvmerge.strategy.HandMade.DIM;
import static dev.kvmerge.strategy.HandMade.cells;
import static dev.kvmerge.strategy.HandMade.exposure;
import static dev.kvmerge.strategy.HandMade.ones;
import static dev.kvmerge.strategy.HandMade.random;
import static dev.kvmerge.strategy.HandMade.vectors;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What strategies merge of attention, keys and values made by hand, and with what weights. */
@Tag("native")
class MergingTest {
    /** Draws keys and values; cells 2 and 3 have the same. */
    private static void drawWithTwins(float[] keys, float[] values) {
        Random random = new Random(3);
        for (int i = 0; i < keys.length; i++) {
            keys[i] = (float) random.nextGaussian();
            values[i] = (float) random.nextGaussian();
        }
        System.arraycopy(keys, 2 * DIM, keys, 3 * DIM, DIM);
        System.arraycopy(values, 2 * DIM, values, 3 * DIM, DIM);
    }

    @Test
    void entropyMergedMergesTwinsAndKeepsWhatIsSharp() {
        // Cells 2 and 3 are twins; 4 is sharp (all the attention); 5 is unattended. Two have to go.
        float[] mass = {5, 1, 2, 2, 9, 0, 1, 1};
        float[] keys = new float[8 * DIM];
        float[] values = new float[8 * DIM];
        drawWithTwins(keys, values);
        Plan plan = new EntropyMerged(1, 0, 8, 0.9, 1.5, 1, Bias.FOLDED, null)
                .plan(cells(mass, new float[8], keys, values), 6);
        assertEquals(plan.target()[2], plan.target()[3], "twins merge: it costs nothing");
        assertEquals(1, plan.weight()[2] + plan.weight()[3], 1e-6);
        assertEquals(Plan.EVICTED, plan.target()[5], "what nobody attends to is dropped: it costs nothing either");
        assertEquals(4, plan.target()[4]);
    }

    @Test
    void theMergingOracleExpectsOfAMergedCellWhatItsTokensGet() {
        // Cells 2 and 3 are twins, and the only ones that nobody will miss apart.
        int n = 8;
        float[] keys = new float[n * DIM];
        float[] values = new float[n * DIM];
        drawWithTwins(keys, values);
        double[] future = {5, 4, 1, 3, 4, 4, 4, 4};
        int[] asked = new int[n];
        Strategy oracle = new OracleMerged(1, 8, 1.5, Bias.FOLDED).knowing((layer, head, position, after) -> {
            asked[position]++;
            return future[position];
        });
        Plan plan = oracle.plan(cells(new float[n], new float[n], keys, values), n - 1);
        assertArrayEquals(new int[] {0, 1, 3, 3, 4, 5, 6, 7}, plan.target(), "into the one that will be asked for");
        assertEquals(0.25, plan.weight()[2], 1e-6);
        assertEquals(0.75, plan.weight()[3], 1e-6);

        float[] fewerKeys = new float[(n - 1) * DIM];
        float[] fewerValues = new float[(n - 1) * DIM];
        System.arraycopy(keys, 0, fewerKeys, 0, 2 * DIM);
        System.arraycopy(keys, 3 * DIM, fewerKeys, 2 * DIM, 5 * DIM);
        System.arraycopy(values, 0, fewerValues, 0, 2 * DIM);
        System.arraycopy(values, 3 * DIM, fewerValues, 2 * DIM, 5 * DIM);
        int[] position = {0, 1, 3, 4, 5, 6, 7};
        float[] none = new float[n - 1];
        oracle.plan(
                new CellStats(
                        0,
                        0,
                        position,
                        none,
                        exposure(position),
                        none,
                        new int[] {1, 1, 2, 1, 1, 1, 1},
                        none,
                        vectors(fewerKeys, fewerValues),
                        null),
                n - 2);
        assertArrayEquals(new int[] {2, 2, 2, 2, 2, 2, 2, 2}, asked, "token 2 still counts, in the cell of token 3");
        assertThrows(NullPointerException.class, () -> new OracleMerged(1, Bias.NONE).knowing(null));
    }

    @Test
    void aCalibrationKeepsWhatIsGoingToBeNeeded() {
        // Cell 2 has had the least attention, and its key says that it will have the most.
        int n = 6;
        float[] w = new float[Calibration.SCALARS + DIM];
        w[1] = 1;
        w[Calibration.SCALARS] = 20;
        Calibration calibration = new Calibration("made by hand", 1, 1, DIM, 0.9, 1, new float[][] {w});
        float[] keys = new float[n * DIM];
        float[] values = new float[n * DIM];
        for (int i = 0; i < n; i++) {
            values[i * DIM + i % DIM] = i < DIM ? 3 : -3;
            keys[i * DIM + 1 + i % 3] = 9; // merging is dear
        }
        keys[2 * DIM] = 1;
        float[] mass = {3, 3, .1f, 3, 3, 3};
        CellStats cells = new CellStats(
                0,
                0,
                IntStream.range(0, n).toArray(),
                mass,
                exposure(IntStream.range(0, n).toArray()),
                new float[n],
                new int[n],
                calibration.prior(0, new float[] {0, 0, 20, 0, 0, 0}, new float[] {3, 3, 3, 3, 3, 3}),
                CellVectors.of(n, keys, values),
                null);
        EntropyMerged blind = new EntropyMerged(0, 0, 8, 0.9, 1.5, 1, Bias.FOLDED, null);
        EntropyMerged foreseeing = new EntropyMerged(0, 0, 8, 0.9, 1.5, 1, Bias.FOLDED, calibration);
        assertEquals(Plan.EVICTED, blind.plan(cells, n - 1).target()[2]);
        assertEquals(2, foreseeing.plan(cells, n - 1).target()[2]);
        assertEquals("made by hand", foreseeing.parameters().get("calibration"));
        assertEquals("none", blind.parameters().get("calibration"));
    }

    @Test
    void aMergedGroupIsWeightedByTheAttentionOfItsMembers() {
        // Equal vectors, but for the newest: every merge is free, and dropping is not.
        float[] mass = {1, 4, 2, 1, 1};
        float[] values = ones(5);
        values[4 * DIM] = -5;
        Plan plan = new EntropyMerged(0, 0, 8, 0.9, 1.5, 1, Bias.FOLDED, null)
                .plan(cells(mass, new float[5], ones(5), values), 2);
        // Rates are mass / age: 1/5, 4/4, 2/3, 1/2 over the four that may go.
        double total = 1 / 5.0 + 4 / 4.0 + 2 / 3.0 + 1 / 2.0;
        int pivot = plan.target()[0];
        assertEquals(1, pivot, "the heaviest is the pivot");
        assertArrayEquals(new int[] {1, 1, 1, 1, 4}, plan.target());
        assertEquals(0.2 / total, plan.weight()[0], 1e-6);
        assertEquals(1 / total, plan.weight()[1], 1e-6);
    }

    @Test
    void rowEntropyMergesTheMostDiffuseSpanFirst() {
        float[] entropy = {0, .6f, .6f, .1f, .9f, .9f, .9f, .2f, .9f, .9f};
        float[] mass = {1, 1, 1, 1, 2, 1, 1, 1, 1, 1};
        CellStats cells = cells(mass, entropy, new float[40], new float[40]);
        RowEntropyMerged strategy = new RowEntropyMerged(0.5, 1, 0.25, Bias.FOLDED);
        assertEquals(
                List.of("4-7", "1-3"),
                strategy.spans(cells, 1, 8).stream()
                        .map(s -> s.from() + "-" + s.to())
                        .toList());
        Plan plan = strategy.plan(cells, 8);
        assertArrayEquals(new int[] {0, 1, 2, 3, 4, 4, 4, 7, 8, 9}, plan.target());
        assertEquals(0.5, plan.weight()[4]);
        Plan more = strategy.plan(cells, 7);
        assertArrayEquals(new int[] {0, 1, 1, 3, 4, 4, 4, 7, 8, 9}, more.target());
        Plan most = strategy.plan(cells, 5); // spans are used up: the least attended single cells go next
        assertArrayEquals(new int[] {0, 1, 1, -1, 4, 4, 4, -1, 8, 9}, most.target());
    }

    @Test
    void d2oMergesTheEvictedIntoTheNearestKeyByExpOfTheSimilarity() {
        // Cells 1 and 2 are evicted; 1 points as 0 does, 2 across all: its similarity is below the mean.
        float[] keys = {1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
        float[] mass = {9, 1, 1, 8, 7};
        Plan plan = new D2o(0.2).plan(cells(mass, new float[5], keys, ones(5)), 3);
        assertArrayEquals(new int[] {0, 0, -1, 3, 4}, plan.target());
        assertEquals(0.5, plan.weight()[0], 1e-6, "exp(1) each: the keys point the same way");
    }

    @Test
    void camSharesTheValueOfWhatIsEvictedAmongTheNext() {
        // Cells 1 and 2 are evicted, and get as much attention as the two after them: their values are surely shared. 2
        // passes on what it got.
        float[] mass = {9, 2, 1, 1, 1, 1};
        float[] values = new float[6 * DIM];
        for (int i = 0; i < values.length; i++) {
            values[i] = 1 + i;
        }
        CellStats cells = new CellStats(
                0,
                0,
                IntStream.range(0, 6).toArray(),
                mass,
                new float[] {1, 1, 1, 1, 1, 1},
                new float[6],
                new int[6],
                new float[6],
                vectors(ones(6), values),
                null);
        Plan plan = new Cam(1, 2, 1).plan(cells, 4);
        assertArrayEquals(new int[] {0, -1, -1, 3, 4, 5}, plan.target());
        assertArrayEquals(new float[] {1, 1, 1, 1, 1, 1}, plan.weight());
        for (int d = 0; d < DIM; d++) {
            float first = values[DIM + d] / 2;
            float second = (values[2 * DIM + d] + first) / 2;
            float[] expected = {0, 0, first, first + second, second, 0};
            for (int i = 0; i < 6; i++) {
                assertEquals(expected[i], plan.addedValues()[i * DIM + d], 1e-5);
            }
        }
        int shared = 0; // with a third of their attention, one draw in three
        mass[1] = 1 / 3f;
        for (int seed = 0; seed < 3000; seed++) {
            Plan drawn = new Cam(1, 2, seed).plan(cells, 4);
            shared += drawn.addedValues()[2 * DIM] > 0 ? 1 : 0;
        }
        assertEquals(1000, shared, 100);
    }

    @Test
    void theInformationBottleneckMergesWhatTellsQueriesApartLeast() {
        // Keys differ in one dimension, whose variance is 2 after the mean; sigma^2 = 2 (difference)^2 / 4.
        float[] at = {0, 1, 1.1f, 5, 9, 20};
        float[] keys = new float[6 * DIM];
        for (int i = 0; i < 6; i++) {
            keys[i * DIM] = at[i];
        }
        float[] mass = {6, 5, 4, 3, 2, 1}; // one a query each
        float[] mean = {1, 0, 0, 0};
        float[] second = new float[16];
        second[0] = 3;
        CellStats cells = new CellStats(
                0,
                0,
                IntStream.range(0, 6).toArray(),
                mass,
                exposure(IntStream.range(0, 6).toArray()),
                new float[6],
                new int[] {1, 1, 1, 1, 1, 1},
                new float[6],
                vectors(keys, keys),
                () -> new Observer.QueryMoments(mean, second));
        Strategy bottleneck = new InformationBottleneck(1, 0.2, 1, Bias.FOLDED);
        assertArrayEquals(
                new int[] {0, 1, 1, 3, 4, 5}, bottleneck.plan(cells, 5).target());
        // Then 3 and 4, 16 apart, or the pair at 1.05 and 3, 15.6 apart: both cost the whole entropy of their shares,
        // log 2 over two cells and less
        // than that over three.
        assertArrayEquals(
                new int[] {0, 1, 1, 3, 3, 5}, bottleneck.plan(cells, 4).target());
        assertEquals(0.5 * 0.5 * 0.08 / 2, InformationBottleneck.divergence(0.5, 0.08), 1e-12);
        assertEquals(Math.log(2), InformationBottleneck.divergence(0.5, 100), 1e-12);
    }

    @Test
    void weightedKvLeavesKeysAndAveragesValuesByAverageAttention() {
        float[] mass = {9, 1, 6, 8, 7};
        Plan plan = new WeightedKv(1, 0.25).plan(cells(mass, new float[5], ones(5), ones(5)), 4);
        assertArrayEquals(new int[] {0, 2, 2, 3, 4}, plan.target());
        assertArrayEquals(new float[] {1, 0, 1, 1, 1}, plan.weight(), "keys");
        double rate1 = 1 / 4.0;
        double rate2 = 6 / 3.0;
        assertEquals(rate1 / (rate1 + rate2), plan.valueWeight()[1], 1e-6);
        assertEquals(rate2 / (rate1 + rate2), plan.valueWeight()[2], 1e-6);
    }

    @Test
    void keepKvMergesLikeKeysByVotesTimesAttentionAndDropsTheRest() {
        float[] keys = {1, 0, 0, 0, 1, .1f, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
        float[] mass = {10, 4, 1, 8, 7};
        Plan plan = new KeepKv(0.2, 0.8).plan(cells(mass, new float[5], keys, ones(5)), 3);
        assertArrayEquals(new int[] {0, 0, -1, 3, 4}, plan.target());
        assertEquals(10 / 5.0 / (10 / 5.0 + 4 / 4.0), plan.weight()[0], 1e-6);
        assertEquals(Bias.FOLDED, new KeepKv(0.2, 0.8).needs().bias());
    }

    @Test
    void zsMergeAveragesEverythingElseIntoResidualsByCount() {
        float[] mass = {9, 1, 2, 3, 8, 7};
        Plan plan = new ZsMerge(0.25, 0.25).plan(cells(mass, new float[6], ones(6), ones(6)), 4);
        // Kept: 0, 3, 4 and the newest; 3 is the least attended of them, so the residual, and takes in 1 and 2.
        assertArrayEquals(new int[] {0, 3, 3, 3, 4, 5}, plan.target());
        assertEquals(1 / 3.0, plan.weight()[1], 1e-6, "the entropy of equal weights is the log of the count");
    }

    @Test
    void kvMergerJoinsTheNeighboursThatAreMostAlike() {
        float[] keys = {1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
        float[] mass = {1, 1, 5, 1, 1};
        Plan plan = new KvMerger(0, 0.2).plan(cells(mass, new float[5], keys, ones(5)), 4);
        assertArrayEquals(new int[] {0, 2, 2, 3, 4}, plan.target());
        double far = Math.exp(-0.5); // at the mean distance, since there is but one
        assertEquals(far / (1 + far), plan.weight()[1], 1e-6);
    }
}
