package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** Sessions of several threads in everything that they can do, cancelled and looked at meanwhile. */
@Tag("native")
class ManyCallsTest extends TinyEngine {
    private static final int THREADS = 5;
    private static final int CALLS = 60;

    @Test
    void nothingIsLostOrStuckWhateverIsCalled() throws Exception {
        try (Engine engine = engine(THREADS)) {
            List<FutureTask<Integer>> all = new ArrayList<>();
            for (int i = 0; i < THREADS; i++) {
                int seed = i;
                all.add(new FutureTask<>(() -> calls(engine, new Random(seed), folder.resolve(seed + ".session"))));
            }
            all.forEach(Thread.ofPlatform()::start);
            int calls = 0;
            for (FutureTask<Integer> one : all) {
                calls += one.get(120, TimeUnit.SECONDS);
            }
            assertEquals(THREADS * CALLS, calls);
            assertEquals(THREADS, engine.freeSessions());
        }
    }

    private static int calls(Engine engine, Random random, Path file) throws InterruptedException {
        int calls = 0;
        while (calls < CALLS) {
            try (Session session = engine.open()) {
                Thread other = Thread.ofVirtual().start(() -> meddle(session));
                for (int i = 0; i < 10; i++, calls++) {
                    try {
                        call(session, random.nextInt(8), file);
                    } catch (KvmergeException
                            | ArithmeticException e) { // refused, cancelled, or thrown by the callback
                        assertTrue(e.getMessage() != null);
                    }
                    int waiting = session.tokens().length - session.cells().tokens();
                    assertTrue(waiting == 0 || waiting == 1, "what was generated last alone is not decoded");
                }
                other.interrupt();
                other.join();
            }
        }
        return calls;
    }

    private static void meddle(Session session) {
        while (!Thread.currentThread().isInterrupted()) {
            session.cells();
            session.cancel();
            Thread.yield();
        }
    }

    private static void call(Session session, int which, Path file) {
        switch (which) {
            case 0 -> session.read(new int[100], ReadOptions.usual());
            case 1 -> session.clear();
            case 2 -> {
                session.save(file);
                session.load(file);
            }
            case 3 -> session.fork().close();
            case 4 -> session.pin();
            case 5 -> session.generate("x", drawn(2000).withTimeout(Duration.ofMillis(20)), text -> {});
            case 6 ->
                session.generate("y", drawn(50), text -> {
                    throw new ArithmeticException("mine");
                });
            default -> session.generate("abc", drawn(20), text -> {});
        }
    }
}
