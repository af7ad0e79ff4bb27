package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class ParallelTest {
    @Test
    void everyNumberComesOnceOnNoMoreThreadsThanAsked() {
        for (int threads : new int[] {1, 2, 3, 64}) {
            AtomicIntegerArray seen = new AtomicIntegerArray(1000);
            Set<Thread> used = ConcurrentHashMap.newKeySet();
            Parallel.each(1000, threads, i -> {
                seen.incrementAndGet(i);
                used.add(Thread.currentThread());
            });
            for (int i = 0; i < 1000; i++) {
                assertEquals(1, seen.get(i));
            }
            assertTrue(used.size() <= threads, used + " of " + threads);
        }
        Parallel.each(0, 4, i -> {
            throw new AssertionError("nothing to do");
        });
    }

    @Test
    void whatIsThrownIsThrownWhenNobodyIsInsideAnyMore() {
        for (int round = 0; round < 50; round++) {
            AtomicInteger inside = new AtomicInteger();
            CountDownLatch other = new CountDownLatch(1);
            RuntimeException failure = new RuntimeException("at 3");
            RuntimeException thrown = assertThrows(
                    RuntimeException.class,
                    () -> Parallel.each(100, 4, i -> {
                        inside.incrementAndGet();
                        if (i == 3) {
                            inside.decrementAndGet();
                            other.countDown();
                            throw failure;
                        }
                        Thread.yield();
                        inside.decrementAndGet();
                    }));
            assertSame(failure, thrown);
            assertEquals(0, inside.get());
            assertEquals(0, other.getCount());
        }
        assertThrows(
                StackOverflowError.class,
                () -> Parallel.each(4, 2, i -> {
                    throw new StackOverflowError();
                }));
    }
}
