package dev.kvmerge.cache;

import dev.kvmerge.Failures;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.ForkJoinTask;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.IntConsumer;

/**
 * A loop over independent work on several threads, a piece at a time: a stream alone would cut it into a few large
 * ones, and wait for the last.
 */
public final class Parallel {
    private final int n;
    private final IntConsumer body;
    private final AtomicInteger next = new AtomicInteger();
    private final AtomicReference<Throwable> failure = new AtomicReference<>();

    private Parallel(int n, IntConsumer body) {
        this.n = n;
        this.body = body;
    }

    /** On all cores. */
    public static void each(int n, IntConsumer body) {
        each(n, Runtime.getRuntime().availableProcessors(), body);
    }

    /**
     * Calls body with 0 to n - 1. When it throws, what has not begun is left, what has begun is waited for, and the
     * first that was thrown is thrown: afterwards no thread is in the body.
     *
     * @param threads at most so many, the caller's among them; no more than the cores
     */
    public static void each(int n, int threads, IntConsumer body) {
        Parallel loop = new Parallel(n, body);
        List<ForkJoinTask<?>> others = new ArrayList<>();
        for (int t = 1; t < Math.min(n, threads); t++) {
            others.add(ForkJoinPool.commonPool().submit(loop::work));
        }
        loop.work();
        others.forEach(ForkJoinTask::quietlyJoin);
        Failures.rethrow(loop.failure.get());
    }

    private void work() {
        try {
            for (int i = next.getAndIncrement(); i < n && failure.get() == null; i = next.getAndIncrement()) {
                body.accept(i);
            }
        } catch (Throwable e) { // thrown again by the caller
            if (!failure.compareAndSet(null, e) && failure.get() != e) {
                failure.get().addSuppressed(e);
            }
        }
    }
}
