package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.cache.Planner;
import dev.kvmerge.engine.Generation.Ended;
import dev.kvmerge.strategy.StreamingLlm;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** Sessions side by side: each as if it were alone. */
@Tag("native")
class SeveralSessionsTest extends TinyEngine {
    @Test
    void aLongPromptDoesNotStarveAGenerationAndPromptsTakeTurns() throws Exception {
        try (Engine engine = engine(3);
                Session talking = engine.open();
                Session reading = engine.open();
                Session also = engine.open()) {
            Generation alone = also.generate(prompt(20), drawn(40), t -> {});
            also.clear();
            List<String> order = Collections.synchronizedList(new ArrayList<>());
            CountDownLatch begun = new CountDownLatch(2);
            FutureTask<Integer> one =
                    new FutureTask<>(() -> reading.read(new int[32 * 100], progress("r", order, begun)));
            FutureTask<Integer> two = new FutureTask<>(() -> also.read(new int[32 * 100], progress("a", order, begun)));
            Thread.ofPlatform().start(one);
            Thread.ofPlatform().start(two);
            assertTrue(begun.await(60, TimeUnit.SECONDS));
            order.clear();
            Generation g = talking.generate(prompt(20), drawn(40), t -> {});
            int blocks = order.size();
            assertArrayEquals(alone.tokens(), g.tokens());
            assertTrue(blocks < 2 * 42, "at most a block a token: " + blocks);
            reading.cancel();
            also.cancel();
            assertTrue(one.get(60, TimeUnit.SECONDS) + two.get(60, TimeUnit.SECONDS) > 0);
        }
    }

    @Test
    void eachOfSeveralSessionsGivesWhatItGivesAlone() throws Exception {
        int n = 6;
        List<int[]> alone = new ArrayList<>();
        try (Engine engine = engine(1)) {
            for (int i = 0; i < n; i++) {
                try (Session session = engine.open()) {
                    alone.add(session.generate(prompt(10 + 40 * i), drawn(80), t -> {})
                            .tokens());
                }
            }
        }
        try (Engine engine = engine(n)) {
            for (int turn = 0; turn < 2; turn++) { // the second on sequences that others have had
                List<FutureTask<int[]>> all = new ArrayList<>();
                for (int i = 0; i < n; i++) {
                    String text = prompt(10 + 40 * i);
                    Session session = engine.open();
                    all.add(new FutureTask<>(() -> {
                        try (session) {
                            return session.generate(text, drawn(80), t -> {}).tokens();
                        }
                    }));
                }
                all.forEach(Thread.ofVirtual()::start);
                for (int i = 0; i < n; i++) {
                    assertArrayEquals(alone.get(i), all.get(i).get(60, TimeUnit.SECONDS), "session " + i);
                }
                assertEquals(n, engine.freeSessions());
            }
        }
    }

    @Test
    void whatAStrategyThrowsIsThrownAndTheTokensCount() throws Exception {
        AtomicInteger failing = new AtomicInteger(-1); // the sequence whose planner throws
        AtomicInteger made = new AtomicInteger(-1); // the engine's own comes first
        EngineOptions options = options(2).withStrategy(m -> {
            int sequence = made.getAndIncrement();
            Planner planner = new StreamingLlm(4);
            return (cells, budget) -> {
                if (failing.get() == sequence) {
                    throw new ArithmeticException("no plan");
                }
                return planner.plan(cells, budget);
            };
        });
        try (Engine engine = Engine.of(model, options);
                Session one = engine.open();
                Session two = engine.open()) {
            one.read(prompt(20));
            FutureTask<Generation> other = new FutureTask<>(() -> two.generate(prompt(20), drawn(300), t -> {}));
            Thread.ofPlatform().start(other);
            failing.set(0);
            assertThrows(ArithmeticException.class, () -> one.generate("", drawn(300), t -> {}));
            int counted = one.cells().tokens();
            assertTrue(counted > CELLS && one.tokens().length - counted <= 1, "what was decoded counts, once");
            assertThrows(ArithmeticException.class, () -> one.generate("", drawn(2), t -> {}), "it plans again");
            failing.set(-2);
            assertEquals(5, one.generate("", drawn(5), t -> {}).tokens().length);
            assertEquals(300, other.get(60, TimeUnit.SECONDS).tokens().length, "another session notices nothing");
            int n = one.tokens().length;
            assertTrue(n - one.cells().tokens() <= 1, "the same tokens here and in the cache");
        }
    }

    @Test
    void aGenerationGoesOnFromTheNewestTokenAlsoIfItsCompressionThrew() {
        boolean[] failing = {true};
        EngineOptions options = options(1).withStrategy(m -> {
            Planner planner = new StreamingLlm(4);
            return (cells, budget) -> {
                if (failing[0]) {
                    throw new ArithmeticException("no plan");
                }
                return planner.plan(cells, budget);
            };
        });
        try (Engine broken = Engine.of(model, options);
                Engine whole = Engine.of(model, options);
                Session one = broken.open();
                Session other = whole.open()) {
            int[] text = one.tokenize(prompt(CELLS + BLOCK - 1), false);
            assertThrows(ArithmeticException.class, () -> one.read(text, ReadOptions.usual()));
            failing[0] = false;
            other.read(text, ReadOptions.usual());
            assertEquals(CELLS + BLOCK, one.usage().tokens());
            assertArrayEquals(
                    other.generate("", drawn(20), t -> {}).tokens(),
                    one.generate("", drawn(20), t -> {}).tokens());
        }
    }

    /** Nobody waits for ever: what waits is told, and so is whoever comes later; all can be closed. */
    @Test
    void anEngineWhoseThreadHasFailedSaysSo() {
        Engine engine = engine(2);
        Session session = engine.open();
        Scheduler.Ending never = new Scheduler.Ending() {
            @Override
            public long nanosLeft() {
                return Long.MAX_VALUE;
            }

            @Override
            public void interrupted() {}
        };
        assertThrows(
                NullPointerException.class,
                () -> engine.scheduler().decode(null, new int[1], never, n -> {}),
                "a fault of the scheduler's own");
        IllegalStateException later = assertThrows(IllegalStateException.class, () -> session.read("x"));
        assertTrue(later.getMessage().contains("the engine has failed"), later.getMessage());
        assertTrue(later.getCause() instanceof NullPointerException);
        session.close();
        assertEquals(2, engine.freeSessions());
        engine.close();
    }

    /** Looks at the cells without a pause between them do not stop a generation. */
    @Test
    void operationsAndBatchesTakeTurns() throws Exception {
        try (Engine engine = engine(2);
                Session talking = engine.open()) {
            FutureTask<Generation> made = new FutureTask<>(() -> talking.generate(prompt(5), drawn(20), t -> {}));
            List<Thread> looking = new ArrayList<>();
            for (int i = 0; i < 3; i++) { // the next one is queued before the last is done
                looking.add(Thread.ofPlatform().daemon().start(() -> {
                    while (!made.isDone()) {
                        talking.usage();
                    }
                }));
            }
            Thread.ofPlatform().start(made);
            assertEquals(20, made.get(60, TimeUnit.SECONDS).tokens().length);
            for (Thread thread : looking) {
                thread.join();
            }
        }
    }

    @Test
    void anEngineThatIsClosedCancelsWhatRuns() throws Exception {
        Engine engine = engine(2);
        Session session = engine.open();
        CountDownLatch begun = new CountDownLatch(1);
        FutureTask<Generation> running =
                new FutureTask<>(() -> session.generate(prompt(5), drawn(1_000_000), t -> begun.countDown()));
        Thread.ofPlatform().start(running);
        assertTrue(begun.await(60, TimeUnit.SECONDS));
        engine.close();
        assertEquals(Ended.CANCELLED, running.get(60, TimeUnit.SECONDS).ended());
        assertThrows(IllegalStateException.class, () -> session.read("x"));
        assertThrows(IllegalStateException.class, engine::open);
        engine.close();
    }

    private static ReadOptions progress(String name, List<String> order, CountDownLatch begun) {
        return ReadOptions.usual().withProgress((n, all) -> {
            order.add(name);
            begun.countDown();
        });
    }
}
