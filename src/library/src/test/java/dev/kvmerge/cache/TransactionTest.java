package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.Model;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Field;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.Filter;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A compression happens whole or not at all, and a context that is used wrongly says so. */
@Tag("native")
class TransactionTest {
    private static final int CELLS = 48;
    private static final int BLOCK = 32;

    @TempDir
    static Path folder;

    private static Model model;
    private final Random random = new Random(1);
    private Guard observer; // of the context that is to fail
    private final List<Guard.Use> held = new ArrayList<>(); // until it has failed

    @BeforeAll
    static void load() {
        model = TestModel.tiny(folder);
    }

    @AfterAll
    static void close() {
        model.close();
    }

    private static CacheOptions options(int threads) {
        return CacheOptions.of(CELLS, BLOCK).with(ComputeSettings.usual().withThreads(threads));
    }

    private static CompressedContext context(Planner planner) {
        return new CompressedContext(model, planner, options(1));
    }

    private int[] tokens(int n) {
        return random.ints(n, 0, TinyGguf.VOCABULARY).toArray();
    }

    private static float[] logits(CompressedContext context) {
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    /** Keeps two sinks and the newest. */
    private static Plan window(CellStats cells, int budget) {
        boolean[] kept = new boolean[cells.size()];
        for (int i = 0; i < kept.length; i++) {
            kept[i] = i < 2 || i >= kept.length - (budget - 2);
        }
        return Plan.keep(kept);
    }

    private static Guard guard(Observer observer) {
        try {
            Field field = Observer.class.getDeclaredField("guard");
            field.setAccessible(true);
            return (Guard) field.get(observer);
        } catch (ReflectiveOperationException e) {
            throw new AssertionError(e);
        }
    }

    /** A planner that goes wrong once, and the one that does not. */
    private void afterAFailure(int threads, Planner wrong, String message) {
        AtomicInteger failing = new AtomicInteger();
        Planner planner = (cells, budget) -> failing.get() == 1 && cells.layer() == 1 && cells.kvHead() == 1
                ? wrong.plan(cells, budget)
                : window(cells, budget);
        try (CompressedContext failed = new CompressedContext(model, planner, options(threads));
                CompressedContext never = context(TransactionTest::window)) {
            observer = guard(failed.observer());
            for (int block = 0; block < 5; block++) {
                int[] tokens = tokens(BLOCK);
                never.decode(tokens);
                failing.set(block == 2 ? 1 : 0);
                if (block == 2) {
                    RuntimeException thrown = assertThrows(RuntimeException.class, () -> failed.decode(tokens));
                    assertTrue(thrown.getMessage().contains(message), thrown.getMessage());
                    assertEquals(CELLS + BLOCK, failed.used(), "nothing has changed");
                    assertEquals(3 * BLOCK, failed.position(), "the tokens were decoded");
                    assertThrows(RuntimeException.class, failed::flush, "it plans again");
                    assertThrows(RuntimeException.class, () -> failed.decode(tokens(1)), "and before it decodes");
                    assertEquals(3 * BLOCK, failed.position());
                    held.forEach(Guard.Use::close);
                } else {
                    failed.decode(tokens);
                }
                assertArrayEquals(logits(never), logits(failed), "block " + block);
            }
            assertEquals(CELLS, failed.used());
        }
    }

    @Test
    void aPlannerThatThrowsChangesNothing() {
        afterAFailure(
                2,
                (cells, budget) -> {
                    throw new ArithmeticException("no plan");
                },
                "no plan");
    }

    @Test
    void aPlanThatIsRefusedChangesNothing() {
        afterAFailure(1, (cells, budget) -> null, "layer 1, KV head 1: is null");
        afterAFailure(1, (cells, budget) -> window(cells, budget - 1), "the budget is");
        afterAFailure(
                1,
                (cells, budget) -> window(cells, budget).withAddedValues(new float[cells.size()]),
                "elements to add to the values");
    }

    @Test
    void aPlannerMayPlanALayersHeadsTogether() {
        Planner together = new Planner() {
            @Override
            public Plan plan(CellStats cells, int budget) {
                throw new AssertionError("asked for one head");
            }

            @Override
            public Plan[] planLayer(List<CellStats> heads, int budget) {
                assertEquals(model.shape().kvHeads(), heads.size());
                for (int head = 0; head < heads.size(); head++) {
                    assertEquals(head, heads.get(head).kvHead());
                    assertEquals(heads.getFirst().layer(), heads.get(head).layer());
                }
                return heads.stream().map(head -> window(head, budget)).toArray(Plan[]::new);
            }
        };
        try (CompressedContext layers = new CompressedContext(model, together, options(2));
                CompressedContext heads = context(TransactionTest::window)) {
            for (int block = 0; block < 4; block++) {
                int[] tokens = tokens(BLOCK);
                layers.decode(tokens);
                heads.decode(tokens);
                assertArrayEquals(logits(heads), logits(layers), "block " + block);
            }
        }
    }

    @Test
    void fewerPlansThanHeadsAreRefused() {
        Planner fewer = new Planner() {
            @Override
            public Plan plan(CellStats cells, int budget) {
                return window(cells, budget);
            }

            @Override
            public Plan[] planLayer(List<CellStats> heads, int budget) {
                return new Plan[] {plan(heads.getFirst(), budget)};
            }
        };
        try (CompressedContext context = new CompressedContext(model, fewer, options(1))) {
            KvmergeException thrown = assertThrows(KvmergeException.class, () -> {
                for (int block = 0; block < 4; block++) {
                    context.decode(tokens(BLOCK));
                }
            });
            assertTrue(thrown.getMessage().contains("where it has"), thrown.getMessage());
        }
    }

    @Test
    void planningTakesNoMoreThreadsThanTheContext() {
        Set<Thread> used = ConcurrentHashMap.newKeySet();
        Planner planner = (cells, budget) -> {
            used.add(Thread.currentThread());
            return window(cells, budget);
        };
        try (CompressedContext context = new CompressedContext(model, planner, options(1))) {
            for (int block = 0; block < 4; block++) {
                context.decode(tokens(BLOCK));
            }
        }
        assertEquals(Set.of(Thread.currentThread()), used);
    }

    @Test
    void severalThreadsReadCellsAtOnce() {
        try (CompressedContext context = new CompressedContext(model, (c, budget) -> window(c, budget), options(1))) {
            context.decode(tokens(BLOCK));
            context.flush();
            float[] expected = context.cells(1, 1).keys();
            IntStream.range(0, 2_000)
                    .parallel()
                    .forEach(
                            i -> assertArrayEquals(expected, context.cells(1, 1).keys()));
        }
    }

    /** Another call inside the observer keeps the rewriting out. */
    @Test
    void aRewritingThatDoesNotBeginChangesNothing() {
        afterAFailure(
                1,
                (cells, budget) -> {
                    held.add(observer.shared());
                    return window(cells, budget);
                },
                "the observer is in use by");
    }

    /** Another call inside the context keeps the rewriting out, before it has written anything. */
    @Test
    void aContextThatIsBusyKeepsTheRewritingOut() throws Exception {
        CountDownLatch inside = new CountDownLatch(1);
        CountDownLatch goOn = new CountDownLatch(1);
        List<CompressedContext> self = new ArrayList<>();
        FutureTask<Void> intruder = new FutureTask<>(
                () -> self.getFirst().context().decode(1, i -> {
                    inside.countDown();
                    try {
                        goOn.await();
                    } catch (InterruptedException e) {
                        Thread.currentThread().interrupt();
                    }
                    throw new IllegalArgumentException("no token after all");
                }),
                null);
        AtomicInteger plans = new AtomicInteger();
        Planner planner = (cells, budget) -> {
            if (plans.incrementAndGet() == 4) { // the last head's
                new Thread(intruder).start();
                try {
                    inside.await();
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                }
            }
            return window(cells, budget);
        };
        try (CompressedContext context = new CompressedContext(model, planner, options(1));
                CompressedContext never = context(TransactionTest::window)) {
            self.add(context);
            int[][] tokens = {tokens(BLOCK), tokens(BLOCK), tokens(BLOCK)};
            context.decode(tokens[0]);
            Exception cause = assertThrows(IllegalStateException.class, () -> context.decode(tokens[1]));
            assertTrue(cause.getMessage().contains("the context is in use by"), cause.getMessage());
            goOn.countDown();
            assertThrows(Exception.class, intruder::get);
            assertEquals(2 * BLOCK, context.used(), "nothing has changed");
            context.decode(tokens[2]);
            for (int[] block : tokens) {
                never.decode(block);
            }
            assertArrayEquals(logits(never), logits(context));
        }
    }

    @Test
    void aContextWhoseCellsAndTableDisagreeSaysSoUntilItIsCleared() {
        try (CompressedContext context = context(TransactionTest::window);
                CompressedContext never = context(TransactionTest::window)) {
            context.decode(tokens(5));
            context.context().decode(tokens(3), 5); // behind its back
            Exception cause = assertThrows(KvmergeException.class, () -> context.decode(tokens(1)));
            assertEquals(5, context.used(), "the table was not moved");
            assertTrue(context.isBroken());
            for (Runnable call : new Runnable[] {
                () -> context.decode(tokens(1)),
                context::flush,
                context::account,
                context::pin,
                context::logits,
                () -> context.forkInto(never),
                () -> context.fates(0, 0),
                () -> context.cells(0, 0)
            }) {
                IllegalStateException broken = assertThrows(IllegalStateException.class, call::run);
                assertTrue(broken.getMessage().contains("is broken"), broken.getMessage());
                assertSame(cause, broken.getCause());
            }
            context.clear();
            assertFalse(context.isBroken());
            int[] tokens = tokens(BLOCK);
            context.decode(tokens);
            never.decode(tokens);
            assertArrayEquals(logits(never), logits(context), "as a new one");
        }
    }

    @Test
    void anAccountInMidStreamIsCompressedLater() {
        try (CompressedContext context = context(TransactionTest::window)) {
            for (int i = 0; i < 40; i++) {
                context.decode(tokens(7));
                context.account();
                assertTrue(context.used() <= CELLS + BLOCK, "used " + context.used());
                assertEquals(
                        Math.min(context.used(), 7 * (i + 1)),
                        context.cells(1, 1).size());
            }
            assertEquals(280, context.position());
        }
    }

    @Test
    void wrongArgumentsAreRefused() {
        try (CompressedContext context = context(TransactionTest::window)) {
            assertThrows(IllegalStateException.class, () -> context.cells(0, 0), "nothing decoded");
            context.decode(tokens(5));
            assertEquals(5, context.cells(1, 1).size());
            for (int[] at : new int[][] {{0, 2}, {2, 0}, {-1, 0}, {0, -1}, {1, Integer.MAX_VALUE}}) {
                String message = assertThrows(IllegalArgumentException.class, () -> context.cells(at[0], at[1]))
                        .getMessage();
                assertTrue(message.contains("no KV head " + at[1] + " of layer " + at[0]), message);
                assertThrows(IllegalArgumentException.class, () -> context.unrotated(at[0], at[1]));
            }
            assertThrows(IllegalArgumentException.class, () -> context.decode(new int[0]));
            assertThrows(IllegalArgumentException.class, () -> context.decode(tokens(BLOCK + 1)));
            assertThrows(IllegalArgumentException.class, () -> context.decode(new int[] {TinyGguf.VOCABULARY}));
            context.decode(tokens(5)); // as if nothing had been
            assertEquals(10, context.used());
        }
        try (CompressedContext context =
                new CompressedContext(model, TransactionTest::window, options(1).withPositionRange(64))) {
            context.decode(tokens(5));
            assertThrows(IllegalStateException.class, () -> context.unrotated(0, 0));
        }
        String message = assertThrows(
                        KvmergeException.class,
                        () -> new CompressedContext(
                                model, TransactionTest::window, CacheOptions.of((1 << 30) - 64, 64)))
                .getMessage();
        assertTrue(message.contains("MiB are free") || message.contains("heap"), message);
    }

    @Test
    void aClosedOrBusyContextIsRefused() throws Exception {
        CountDownLatch inside = new CountDownLatch(1);
        CountDownLatch goOn = new CountDownLatch(1);
        Planner planner = (cells, budget) -> {
            inside.countDown();
            try {
                goOn.await();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            return window(cells, budget);
        };
        CompressedContext context = context(planner);
        context.decode(tokens(BLOCK));
        FutureTask<Void> decode = new FutureTask<>(() -> context.decode(tokens(BLOCK)), null);
        Thread.ofPlatform().name("planner").start(decode);
        inside.await();
        Runnable[] calls = {
            () -> context.decode(tokens(1)),
            context::flush,
            context::account,
            context::logits,
            () -> context.cells(0, 0)
        };
        for (Runnable call : calls) {
            assertEquals(
                    "the compressed context is in use by thread planner",
                    assertThrows(IllegalStateException.class, call::run).getMessage());
        }
        assertThrows(IllegalStateException.class, context::close);
        goOn.countDown();
        decode.get();
        assertEquals(CELLS, context.used());
        context.close();
        context.close();
        for (Runnable call : calls) {
            assertEquals(
                    "the compressed context is closed",
                    assertThrows(IllegalStateException.class, call::run).getMessage());
        }
    }

    @Test
    void aTextPastTheTrainedPositionsIsWarnedOfOnce() {
        List<String> warnings = new ArrayList<>();
        Logger logger = Logger.getLogger("dev.kvmerge");
        Handler handler = new Handler() {
            @Override
            public void publish(LogRecord record) {
                warnings.add(java.text.MessageFormat.format(record.getMessage(), record.getParameters()));
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        };
        logger.addHandler(handler);
        logger.setUseParentHandlers(false);
        try (CompressedContext context = new CompressedContext(model, TransactionTest::window, options(1));
                CompressedContext span = new CompressedContext(
                        model, TransactionTest::window, options(1).withPositionRange(128))) {
            for (int at = 0; at < model.trainedContext(); at += BLOCK) {
                context.decode(tokens(BLOCK));
                span.decode(tokens(BLOCK));
            }
            assertEquals(List.of(), warnings);
            for (int i = 0; i < 3; i++) {
                context.decode(tokens(BLOCK));
                span.decode(tokens(BLOCK));
            }
            assertEquals(1, warnings.size());
            assertTrue(warnings.getFirst().contains("past the 512 positions"), warnings.getFirst());
            assertTrue(warnings.getFirst().contains("a position range of 480 at most"), warnings.getFirst());
        } finally {
            logger.removeHandler(handler);
            logger.setUseParentHandlers(true);
        }
    }

    /** A position range holds no more than the model was trained on, or it is told. */
    @ParameterizedTest
    @CsvSource({"480, 0", "481, 1", "600, 1"})
    void aPositionRangePastTheTrainedPositionsIsWarnedOf(int range, int expected) {
        AtomicInteger warnings = new AtomicInteger();
        Logger logger = Logger.getLogger("dev.kvmerge");
        Filter count = record -> {
            warnings.incrementAndGet();
            return false;
        };
        logger.setFilter(count);
        CacheOptions options = options(1).withPositionRange(range);
        try (CompressedContext context = new CompressedContext(model, TransactionTest::window, options)) {
            for (int i = 0; i < 25; i++) {
                context.decode(tokens(BLOCK));
            }
            assertEquals(expected, warnings.get());
        } finally {
            logger.setFilter(null);
        }
    }
}
