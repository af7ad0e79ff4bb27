package dev.kvmerge.strategy;

import static dev.kvmerge.strategy.HandMade.cells;
import static dev.kvmerge.strategy.HandMade.random;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import java.util.List;
import java.util.stream.IntStream;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** The laws that all strategies keep, and their parameters. */
@Tag("native")
@net.jqwik.api.Tag("native")
class StrategyTest {
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
                new ExpectedAttention(2, 0.02, 512),
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
                "expected-attention:future=0",
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
                new ExpectedAttention(most, 1, 1))) {
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
        assertTrue(Strategies.method("oracle-merged:key-cost=2", Strategies.Settings.DEFAULT) instanceof Foreknowing);
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
