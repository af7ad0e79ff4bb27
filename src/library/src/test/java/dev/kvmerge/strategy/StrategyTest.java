package dev.kvmerge.strategy;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** Strategies on hand-made attention, and the laws that all of them keep. */
@Tag("native")
@net.jqwik.api.Tag("native")
class StrategyTest {
    private static final int DIM = 4;

    static {
        TestModel.loadKernels();
    }

    private static CellStats cells(float[] mass, float[] entropy, float[] keys, float[] values) {
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
    private static float[] exposure(int[] position) {
        float[] exposure = new float[position.length];
        for (int i = 0; i < exposure.length; i++) {
            exposure[i] = position[position.length - 1] - position[i] + 1;
        }
        return exposure;
    }

    private static CellVectors vectors(float[] keys, float[] values) {
        return CellVectors.of(keys.length / DIM, keys, values);
    }

    private static CellStats random(int n, long seed) {
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
        return new CellStats(
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
    }

    @Provide
    Arbitrary<Strategy> strategies() {
        return Arbitraries.of(
                new StreamingLlm(4),
                new StreamingLlm(0),
                new H2o(0.5),
                new H2o(0),
                new H2o(1),
                new EntropyMerged(),
                new EntropyMerged(4, 0.5, 3, 0.9, 1.5, 1, Bias.NONE, null),
                new EntropyMerged(0, 0, 1, 1, 0, 2, Bias.EXACT, null),
                new RowEntropyMerged(0.5, 4, 0.1, Bias.FOLDED),
                new RowEntropyMerged(0, 2, 0, Bias.NONE),
                new RowEntropyMerged(1, 0, 1, Bias.FOLDED),
                new SnapKv(3, 5),
                new AverageMass(4, 0.25, 0.9),
                new KeyNorm(),
                new KeyDiff(),
                new Tova(),
                new Cam(2, 3, 1),
                new InformationBottleneck(4, 0.25, 0.9, Bias.FOLDED),
                new InformationBottleneck(0, 0, 1, Bias.NONE),
                new D2o(0.5),
                new WeightedKv(4, 0.25),
                new WeightedKv(0, 0),
                new KeepKv(0.5, 0.2),
                new KeepKv(0, -1),
                new ZsMerge(0.4, 0.3),
                new ZsMerge(0, 1),
                new KvMerger(2, 0.3),
                new KvMerger(0, 0),
                new ExpectedAttention(2, 0.02),
                new Oracle().knowing((layer, head, position, after) -> Math.floorMod(position * 7919, 101)),
                new RandomEviction(7));
    }

    @Property(tries = 1000)
    void everyPlanHoldsTheBudgetAndKeepsTheNewest(
            @ForAll("strategies") Strategy strategy,
            @ForAll @IntRange(min = 6, max = 200) int n,
            @ForAll @IntRange(min = 1, max = 199) int cut,
            @ForAll long seed) {
        int budget = Math.max(5, n - cut);
        if (budget >= n) {
            return;
        }
        Plan plan = strategy.plan(random(n, seed), budget);
        plan.check(n, budget); // groups, weights, newest alone
        Plan again = strategy.plan(random(n, seed), budget);
        assertArrayEquals(plan.target(), again.target(), "deterministic");
        assertArrayEquals(plan.weight(), again.weight());
    }

    @Property(tries = 300)
    void everyStrategyWorksWithTheFewestCellsThatItAsksFor(
            @ForAll("strategies") Strategy strategy,
            @ForAll @IntRange(min = 1, max = 100) int more,
            @ForAll long seed) {
        int budget = strategy.fewestCells(1);
        strategy.plan(random(budget + more, seed), budget).check(budget + more, budget);
    }

    @Test
    void everyParameterIsCheckedWhenAStrategyIsMade() {
        for (String wrong : List.of(
                "entropy-merged:key-cost=Infinity",
                "entropy-merged:key-cost=NaN",
                "entropy-merged:decay=NaN",
                "entropy-merged:decay=1.1",
                "entropy-merged:mass-power=3",
                "entropy-merged:largest-group=0",
                "entropy-merged:sinks=-1",
                "entropy-merged:recent-share=NaN",
                "entropy-merged-row:threshold=NaN",
                "entropy-merged-ib:decay=-1",
                "h2o:recent-share=NaN",
                "streaming-llm:sinks=-1",
                "snapkv:window=0",
                "snapkv:kernel=2",
                "average-mass:decay=NaN",
                "expected-attention:epsilon=Infinity",
                "expected-attention:epsilon=-1",
                "cam:receivers=0",
                "cam:sinks=-1",
                "d2o:recent-share=2",
                "weighted-kv:recent-share=-0.1",
                "keepkv:threshold=NaN",
                "zsmerge:residual-share=NaN",
                "kvmerger:recent-share=1")) {
            assertThrows(
                    KvmergeException.Usage.class, () -> Strategies.create(wrong, Strategies.Settings.DEFAULT), wrong);
        }
    }

    @Test
    void parametersHoweverLargeDoNotOverflow() {
        int most = Integer.MAX_VALUE;
        for (Strategy strategy : List.of(
                new StreamingLlm(most),
                new Cam(most, most, 1),
                new SnapKv(most, most),
                new EntropyMerged(most, 1, most, 1, 1, 1, Bias.NONE, null),
                new RowEntropyMerged(0.5, most, 1, Bias.NONE),
                new InformationBottleneck(most, 1, 1, Bias.NONE),
                new WeightedKv(most, 1),
                new KvMerger(most, 0.9),
                new ExpectedAttention(most, 1))) {
            assertEquals(most, strategy.fewestCells(128), strategy.name());
        }
        new Cam(2, most, 1).plan(random(40, 1), 20).check(40, 20);
        new SnapKv(3, most).plan(random(40, 1), 20).check(40, 20);
    }

    @Test
    void fullHasNoParametersAndPlansNothingAway() {
        KvmergeException e = assertThrows(
                KvmergeException.Usage.class, () -> Strategies.create("full:x=1", Strategies.Settings.DEFAULT));
        assertEquals("full has no parameters: leave ':x=1' out", e.getMessage());
        assertTrue(new Full().keepsAll());
        new Full().plan(random(7, 1), 7).check(7, 7);
        assertTrue(Strategies.method("oracle", Strategies.Settings.DEFAULT) instanceof Scale);
        assertThrows(
                KvmergeException.Usage.class, () -> Strategies.create("q8_0", Strategies.Settings.DEFAULT), "a scale");
    }

    @Property(tries = 300)
    void entropyMergedLeavesSinksAndTheNewestAlone(@ForAll @IntRange(min = 40, max = 200) int n, @ForAll long seed) {
        CellStats cells = random(n, seed);
        for (Strategy strategy : List.of(
                new EntropyMerged(4, 0.4, 8, 0.9, 1.5, 1, Bias.FOLDED, null),
                new RowEntropyMerged(0.3, 4, 0.4, Bias.FOLDED))) {
            Plan plan = strategy.plan(cells, 30);
            for (int i = 0; i < n; i++) {
                boolean isProtected = i < 4 || i >= n - 12; // 0.4 of 30
                if (isProtected) {
                    int at = i;
                    assertEquals(i, plan.target()[i]);
                    assertEquals(1, plan.weight()[i]);
                    assertTrue(
                            IntStream.range(0, n).allMatch(j -> j == at || plan.target()[j] != at),
                            "nothing merges into a protected cell");
                }
            }
        }
    }

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
    void entropyMergedMergesTwinsAndKeepsWhatIsSharp() {
        // Cells 2 and 3 are twins; 4 is sharp (all the attention); 5 is unattended. Two have to go.
        float[] mass = {5, 1, 2, 2, 9, 0, 1, 1};
        float[] keys = new float[8 * DIM];
        float[] values = new float[8 * DIM];
        Random random = new Random(3);
        for (int i = 0; i < keys.length; i++) {
            keys[i] = (float) random.nextGaussian();
            values[i] = (float) random.nextGaussian();
        }
        System.arraycopy(keys, 2 * DIM, keys, 3 * DIM, DIM);
        System.arraycopy(values, 2 * DIM, values, 3 * DIM, DIM);
        Plan plan = new EntropyMerged(1, 0, 8, 0.9, 1.5, 1, Bias.FOLDED, null)
                .plan(cells(mass, new float[8], keys, values), 6);
        assertEquals(plan.target()[2], plan.target()[3], "twins merge: it costs nothing");
        assertEquals(1, plan.weight()[2] + plan.weight()[3], 1e-6);
        assertEquals(Plan.EVICTED, plan.target()[5], "what nobody attends to is dropped: it costs nothing either");
        assertEquals(4, plan.target()[4]);
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

    private static float[] ones(int n) {
        float[] x = new float[n * DIM];
        Arrays.fill(x, 1);
        return x;
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
        // One dimension of the queries varies: mean 1, variance 2. E[exp(q k / 2)] = exp(k / 2 + 2 k^2 / 8), d = 4.
        float[] keys = new float[4 * DIM];
        double[] k = {-2, 0, 1, 2};
        for (int i = 0; i < 4; i++) {
            keys[i * DIM] = (float) k[i];
        }
        float[] mean = {1, 0, 0, 0};
        float[] second = new float[16];
        second[0] = 3;
        double[] p = ExpectedAttention.probabilities(keys, new Observer.QueryMoments(mean, second), 4, 0);
        double sum = Arrays.stream(k).map(x -> Math.exp(x / 2 + x * x / 4)).sum();
        for (int i = 0; i < 4; i++) {
            assertEquals(Math.exp(k[i] / 2 + k[i] * k[i] / 4) / sum, p[i], 1e-9);
        }
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

    @Test
    void theOracleKeepsWhatTheFutureAttendsTo() {
        double[] future = {1, 0, 5, 3, 0};
        Strategy oracle =
                new Oracle().knowing((layer, head, position, after) -> after == 4 ? future[position] : Double.NaN);
        Plan plan = oracle.plan(cells(new float[] {9, 9, 0, 0, 0}, new float[5], ones(5), ones(5)), 3);
        assertArrayEquals(new int[] {-1, -1, 2, 3, 4}, plan.target());
        assertThrows(NullPointerException.class, () -> new Oracle().knowing(null));
    }

    @Test
    void parametersAreSetByName() {
        assertEquals(new H2o(0.3), Strategies.create("h2o:recent-share=0.3", Strategies.Settings.DEFAULT));
        EntropyMerged changed = (EntropyMerged)
                Strategies.create("entropy-merged:bias=none:largestGroup=2:decay=1", Strategies.Settings.DEFAULT);
        assertEquals(Bias.NONE, changed.bias());
        assertEquals(2, changed.largestGroup());
        assertEquals(1, changed.decay());
        for (String wrong : List.of(
                "h2o:recent-share=x",
                "h2o:sinks=4",
                "h2o:recent-share",
                "h2o:recent-share=7",
                "full:x=1",
                "knorm:x=1",
                "entropy-merged:bias=some")) {
            assertThrows(
                    KvmergeException.Usage.class, () -> Strategies.create(wrong, Strategies.Settings.DEFAULT), wrong);
        }
    }

    @Test
    void selectionTakesTheLargestAndTheFirstOfEquals() {
        double[] score = {1, 3, -2, 3, 0, 3};
        assertArrayEquals(new int[] {1, 3}, Selection.largest(6, 2, i -> score[i]));
        assertArrayEquals(new int[] {0, 1, 3, 4, 5}, Selection.largest(6, 5, i -> score[i]));
        assertThrows(IllegalArgumentException.class, () -> Selection.largest(2, 3, i -> 0));
    }

    @Test
    void namesAndParameters() {
        assertEquals(new Full(), Strategies.create("full", Strategies.Settings.DEFAULT));
        assertEquals("full", Strategies.names().getFirst());
        for (String name : Strategies.names()) {
            assertEquals(
                    name, Strategies.method(name, Strategies.Settings.DEFAULT).name());
        }
        assertEquals(
                "{sinks=4, recentShare=0.25, largestGroup=8, decay=0.9, keyCost=1.5, massPower=1.5, bias=folded, "
                        + "calibration=none}",
                new EntropyMerged().parameters().toString());
        KvmergeException e =
                assertThrows(KvmergeException.Usage.class, () -> Strategies.create("h20", Strategies.Settings.DEFAULT));
        assertTrue(e.getMessage().contains("did you mean 'h2o'"), e.getMessage());
        assertThrows(KvmergeException.Usage.class, () -> new StreamingLlm(-1));
        assertThrows(KvmergeException.Usage.class, () -> new RowEntropyMerged(1.5, 4, 0.25, Bias.NONE));
        assertThrows(KvmergeException.Usage.class, () -> new EntropyMerged(4, 1.5, 8, 0.9, 1.5, 1, Bias.NONE, null));
    }
}
