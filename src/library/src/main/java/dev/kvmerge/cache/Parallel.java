package dev.kvmerge.cache;

import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.IntConsumer;
import java.util.stream.IntStream;

/** A loop over independent work on all cores, a piece at a time: a stream alone would cut it into a few large ones, and wait for the last. */
public final class Parallel {
    private Parallel() {}

    /** Calls body with 0 to n - 1. What it throws is thrown. */
    public static void each(int n, IntConsumer body) {
        AtomicInteger next = new AtomicInteger();
        IntStream.range(0, Math.min(n, Runtime.getRuntime().availableProcessors()))
                .parallel()
                .forEach(thread -> {
                    for (int i = next.getAndIncrement(); i < n; i = next.getAndIncrement()) {
                        body.accept(i);
                    }
                });
    }
}
