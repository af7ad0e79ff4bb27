package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellTable;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.ToDoubleFunction;
import java.util.stream.IntStream;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.lifecycle.AfterContainer;
import net.jqwik.api.lifecycle.BeforeContainer;

/** The native table of a tiny model's cells against a plain one in Java, by the bit. */
@net.jqwik.api.Tag("native")
class CellTableTest {
    private static Model plain;
    private static Model windowed;

    @BeforeContainer
    static void load() {
        plain = load(new Geometry("llama", 4, 2, 16, 10000, "none", 16, false));
        windowed = load(new Geometry("gemma3", 4, 2, 16, 10000, "none", 16, false, 8, 2));
    }

    private static Model load(Geometry geometry) {
        try {
            Path file = Files.createTempFile("tiny", ".gguf");
            try {
                return Model.load(TestModel.library(), TinyGguf.write(file, geometry), Backend.CPU, 0);
            } finally {
                Files.delete(file);
            }
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    @AfterContainer
    static void close() {
        plain.close();
        windowed.close();
    }

    /** Random plans, which it remembers. */
    private record Remembering(Random random, Plan[] plans, Needs needs) implements Planner {
        @Override
        public Plan plan(CellStats cells, int budget) {
            int pair = cells.layer() * 2 + cells.kvHead();
            plans[pair] = random(cells.size(), budget);
            return plans[pair];
        }

        private Plan random(int n, int budget) {
            Plan.Builder plan = Plan.builder(n);
            int excess = n - budget;
            List<Integer> left =
                    new ArrayList<>(IntStream.range(0, n - 1).boxed().toList());
            while (excess > 0) {
                int i = random.nextInt(left.size());
                if (random.nextBoolean()
                        || i + 1 >= left.size()
                        || left.size() <= excess) { // a merge takes one more than it saves
                    plan.evict(left.remove(i));
                    excess--;
                } else {
                    int length = Math.min(2 + random.nextInt(3), Math.min(excess + 1, left.size() - i));
                    List<Integer> group = left.subList(i, i + length);
                    plan.merge(
                            group.stream().mapToInt(x -> x).toArray(),
                            random.doubles(length).toArray());
                    group.clear(); // a group is not touched again
                    excess -= length - 1;
                }
            }
            return plan.build();
        }
    }

    @Property(tries = 40)
    void isTheReferencesOverRandomBlocksAndPlans(@ForAll long seed) {
        Random random = new Random(seed);
        boolean windows = random.nextInt(3) == 0;
        Model model = windows ? windowed : plain;
        int budget = 10 + random.nextInt(12);
        int block = 1 + random.nextInt(6);
        int range = !windows && random.nextBoolean() ? budget + random.nextInt(20) : 0;
        double decay = random.nextInt(3) / 2.0;
        Plan[] plans = new Plan[model.shape().pairs()];
        Needs needs = Needs.NOTHING.withMassDecay(decay).withEntropy();
        Planner planner = new Remembering(random, plans, needs);
        CacheOptions options = CacheOptions.of(budget, block)
                .with(ComputeSettings.usual().withThreads(1))
                .withPositionRange(range)
                .withFates();
        Observer.Options observe = Observer.Options.of(true, true, Bias.NONE, 1);
        try (CompressedContext context = new CompressedContext(model, planner, options, observe)) {
            ReferenceTable reference = new ReferenceTable(model.shape(), options.allocated(), windows);
            int position = 0; // in the text
            int next = 0; // llama.cpp's
            for (int round = 0; round < 12; round++) {
                int n = 1 + random.nextInt(block);
                Arrays.fill(plans, null);
                context.decode(random.ints(n, 0, TinyGguf.VOCABULARY).toArray(), false);
                context.flush();
                reference.add(context.lastStats(), position, next, decay);
                position += n;
                next += n;
                if (reference.used() > budget) {
                    int back = range > 0 ? Math.max(0, next - range) : 0;
                    reference.compress(Arrays.asList(plans), budget, back);
                    next -= back;
                } else if (reference.pinned() == 0 && reference.used() <= budget - 3 && random.nextInt(3) == 0) {
                    context.pin();
                    reference.pin();
                }
                assertEquals(position, context.position());
                assertEquals(reference.used(), context.used());
                assertEquals(reference.pinned(), context.pinned());
                for (int pair = 0; pair < plans.length; pair++) {
                    compare(reference.pair(pair), context.table().columns(pair, true));
                    assertArrayEquals(reference.fates(pair), context.fates(pair / 2, pair % 2));
                }
            }
        }
    }

    private static void compare(List<ReferenceTable.Entry> expected, CellTable.Columns actual) {
        assertArrayEquals(expected.stream().mapToInt(e -> e.cell).toArray(), actual.cell());
        assertArrayEquals(expected.stream().mapToInt(e -> e.position).toArray(), actual.position());
        assertArrayEquals(expected.stream().mapToInt(e -> e.frame).toArray(), actual.frame());
        assertArrayEquals(expected.stream().mapToInt(e -> e.count).toArray(), actual.count());
        compare(expected, e -> e.mass, actual.mass());
        compare(expected, e -> e.exposure, actual.exposure());
        compare(expected, e -> e.entropy, actual.entropy());
        compare(expected, e -> e.prior, actual.prior());
    }

    private static void compare(
            List<ReferenceTable.Entry> expected, ToDoubleFunction<ReferenceTable.Entry> of, float[] actual) {
        for (int i = 0; i < actual.length; i++) {
            assertEquals((float) of.applyAsDouble(expected.get(i)), actual[i]);
        }
        assertEquals(expected.size(), actual.length);
    }

    /** Entropy-merged, planned in Java: as it is without {@link Planner#merging}. */
    private record InJava(EntropyMerged of) implements Planner {
        @Override
        public Plan plan(CellStats cells, int budget) {
            return of.plan(cells, budget);
        }

        @Override
        public Needs needs() {
            return of.needs();
        }
    }

    @Property(tries = 25)
    void theNativePlanOfAllHeadsIsEntropyMergeds(@ForAll long seed) {
        Random random = new Random(seed);
        Calibration calibration = random.nextBoolean() ? calibration(random) : null;
        EntropyMerged usual = new EntropyMerged(calibration);
        EntropyMerged strategy = new EntropyMerged(
                random.nextInt(6),
                random.nextInt(5) / 4.0,
                1 + random.nextInt(8),
                usual.decay(),
                random.nextDouble() * 2,
                usual.massPower(),
                Bias.FOLDED,
                calibration);
        int budget = 10 + random.nextInt(30);
        CacheOptions options = CacheOptions.of(budget, 8 + random.nextInt(16))
                .with(ComputeSettings.usual()
                        .withThreads(1)
                        .withCellTypes(CellType.F16, CellType.F16)
                        .withFlashAttention(random.nextBoolean() ? FlashAttention.ON : FlashAttention.OFF));
        try (CompressedContext whole = new CompressedContext(plain, strategy, options);
                CompressedContext java = new CompressedContext(plain, new InJava(strategy), options)) {
            for (int i = 0; i < 10; i++) {
                int[] tokens = random.ints(1 + random.nextInt(options.block()), 0, TinyGguf.VOCABULARY)
                        .toArray();
                whole.decode(tokens);
                java.decode(tokens);
                if (i == 0 && whole.used() <= budget / 2) {
                    whole.pin();
                    java.pin();
                }
                assertArrayEquals(logits(java), logits(whole));
            }
            whole.flush();
            java.flush();
            for (int pair = 0; pair < plain.shape().pairs(); pair++) {
                CellTable.Columns expected = java.table().columns(pair, true);
                CellTable.Columns actual = whole.table().columns(pair, true);
                assertArrayEquals(expected.cell(), actual.cell());
                assertArrayEquals(expected.position(), actual.position());
                assertArrayEquals(expected.mass(), actual.mass());
                assertArrayEquals(expected.prior(), actual.prior());
            }
        }
    }

    private static Calibration calibration(Random random) {
        float[][] weights = new float[plain.shape().pairs()][Calibration.SCALARS + 16];
        for (float[] row : weights) {
            for (int i = 0; i < row.length; i++) {
                row[i] = (float) (random.nextGaussian() * 0.3);
            }
        }
        return new Calibration("random", 2, 2, 16, 0.9, random.nextBoolean() ? 1 : 1.5, weights);
    }

    private static float[] logits(CompressedContext context) {
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    @Property(tries = 1)
    void refusesToPinMoreThanItsPlannerCanDoWithout() {
        try (CompressedContext context =
                new CompressedContext(plain, new EntropyMerged(), CacheOptions.of(20, 8))) { // needs 4 sinks and 1
            context.decode(new int[8]);
            context.decode(new int[8]);
            String message =
                    assertThrows(KvmergeException.Usage.class, context::pin).getMessage();
            assertTrue(message.contains("they would leave 4 of 20, fewer than the 5"), message);
            assertEquals(0, context.pinned());
            context.decode(new int[8]);
            assertThrows(KvmergeException.class, () -> context.fates(0, 0), "not asked for");
        }
    }

    @Property(tries = 1)
    void refusesWhatNativeCodeCouldNot() {
        CompressedContext context = new CompressedContext(plain, new EntropyMerged(), CacheOptions.of(20, 8));
        try (context) {
            int pairs = plain.shape().pairs();
            float[][] uneven = new float[pairs][22];
            uneven[1] = new float[21];
            for (float[][] calibration : new float[][][] {{}, new float[pairs - 1][22], new float[pairs][6], uneven}) {
                CellTable.Options options =
                        new CellTable.Options(20, 8, 8, 0, false, true, false, 0.9, null, calibration);
                assertThrows(
                        IllegalArgumentException.class,
                        () -> new CellTable(context.observer(), context.context(), 0, options));
            }
            assertThrows(
                    IllegalArgumentException.class, () -> context.table().stage(0, new int[2], new float[1], null));
            context.decode(new int[8]);
        }
        for (Runnable call : new Runnable[] {
            () -> context.table().usage(),
            () -> context.table().columns(0, true),
            () -> context.table().stage(0, new int[1], new float[1], null),
            () -> context.table().plan(),
            () -> context.table().clear(),
            () -> context.table().pin(2)
        }) {
            assertEquals(
                    "the cell table is closed",
                    assertThrows(IllegalStateException.class, call::run).getMessage());
        }
    }
}
