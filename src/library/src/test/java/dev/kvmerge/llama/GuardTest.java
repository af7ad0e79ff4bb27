package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class GuardTest {
    private final Guard guard = new Guard("the thing");

    private String refused(Runnable call) {
        return assertThrows(IllegalStateException.class, call::run).getMessage();
    }

    private static void elsewhere(Runnable call) throws InterruptedException, ExecutionException {
        FutureTask<Void> task = new FutureTask<>(call, null);
        Thread.ofPlatform().name("elsewhere").start(task);
        task.get();
    }

    @Test
    void oneAloneOrManyTogether() throws Exception {
        try (Guard.Use _ = guard.exclusive()) {
            String owner = Thread.currentThread().getName();
            elsewhere(() -> assertEquals("the thing is in use by thread " + owner, refused(guard::exclusive)));
            elsewhere(() -> assertEquals("the thing is in use by thread " + owner, refused(guard::shared)));
            assertTrue(refused(guard::exclusive).contains("this thread"));
            assertTrue(refused(() -> guard.close(() -> {})).contains("this thread"));
        }
        try (Guard.Use _ = guard.shared();
                Guard.Use _ = guard.shared()) {
            elsewhere(() -> guard.shared().close());
            assertTrue(refused(guard::exclusive).contains("in use by another thread"));
            elsewhere(() -> assertTrue(refused(() -> guard.close(() -> {})).contains("in use by another thread")));
        }
        guard.exclusive().close();
    }

    @Test
    void closesOnceAndStaysOpenWhenFreeingFails() {
        AtomicInteger freed = new AtomicInteger();
        refused(() -> guard.close(() -> {
            throw new IllegalStateException("not yet");
        }));
        assertFalse(guard.isClosed());
        guard.exclusive().close();
        assertTrue(guard.close(freed::incrementAndGet));
        assertFalse(guard.close(freed::incrementAndGet));
        assertEquals(1, freed.get());
        assertTrue(guard.isClosed());
        assertEquals("the thing is closed", refused(guard::exclusive));
        assertEquals("the thing is closed", refused(guard::shared));
    }

    @Test
    void noTwoThreadsAreEverInsideAlone() throws Exception {
        int threads = 4;
        AtomicInteger inside = new AtomicInteger();
        AtomicInteger entered = new AtomicInteger();
        CountDownLatch start = new CountDownLatch(threads);
        FutureTask<?>[] tasks = new FutureTask<?>[threads];
        for (int t = 0; t < threads; t++) {
            boolean alone = t % 2 == 0;
            tasks[t] = new FutureTask<>(() -> {
                start.countDown();
                start.await();
                for (int i = 0; i < 20_000; i++) {
                    try (Guard.Use _ = alone ? guard.exclusive() : guard.shared()) {
                        int others = alone ? inside.getAndAdd(1000) : inside.getAndIncrement() / 1000;
                        assertEquals(0, others);
                        inside.addAndGet(alone ? -1000 : -1);
                        entered.incrementAndGet();
                    } catch (IllegalStateException e) {
                        Thread.onSpinWait(); // somebody else is
                    }
                }
                return null;
            });
            new Thread(tasks[t]).start();
        }
        for (FutureTask<?> task : tasks) {
            task.get();
        }
        assertTrue(entered.get() > 0);
        guard.exclusive().close();
    }
}
