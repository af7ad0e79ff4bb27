package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * How to make a llama.cpp context. The names are llama.cpp's options.
 *
 * @param cells KV cells (-c); llama.cpp rounds up to a multiple of 256
 * @param batch most tokens a decode (-b)
 * @param ubatch most tokens computed at once (-ub)
 * @param sequences sequences side by side
 * @param threads CPU threads (-t)
 * @param flashAttention -fa
 * @param keyType type of the K cells (-ctk)
 * @param valueType type of the V cells (-ctv)
 */
public record ContextOptions(
        int cells,
        int batch,
        int ubatch,
        int sequences,
        int threads,
        FlashAttention flashAttention,
        CellType keyType,
        CellType valueType) {
    public ContextOptions {
        positive("cells (-c)", cells);
        positive("batch (-b)", batch);
        positive("ubatch (-ub)", ubatch);
        positive("sequences", sequences);
        positive("threads (-t)", threads);
    }

    private static void positive(String name, int value) {
        if (value <= 0) {
            throw new KvmergeException.Usage(name + " must be positive, not " + value);
        }
    }

    public static ContextOptions of(int cells, int batch) {
        int threads = Runtime.getRuntime().availableProcessors();
        return new ContextOptions(
                cells, batch, Math.min(batch, 512), 1, threads, FlashAttention.OFF, CellType.F16, CellType.F16);
    }

    public ContextOptions withThreads(int n) {
        return new ContextOptions(cells, batch, ubatch, sequences, n, flashAttention, keyType, valueType);
    }

    public ContextOptions withUbatch(int n) {
        return new ContextOptions(cells, batch, n, sequences, threads, flashAttention, keyType, valueType);
    }

    public ContextOptions withSequences(int n) {
        return new ContextOptions(cells, batch, ubatch, n, threads, flashAttention, keyType, valueType);
    }

    public ContextOptions withFlashAttention(FlashAttention f) {
        return new ContextOptions(cells, batch, ubatch, sequences, threads, f, keyType, valueType);
    }

    public ContextOptions withCellTypes(CellType k, CellType v) {
        return new ContextOptions(cells, batch, ubatch, sequences, threads, flashAttention, k, v);
    }

    /** llama.cpp's -fa. */
    public enum FlashAttention {
        AUTO,
        OFF,
        ON
    }

    /** Types of KV cells that llama.cpp can be asked for. */
    public enum CellType {
        F32,
        F16,
        BF16,
        Q8_0,
        Q4_0
    }

    /**
     * A C function that llama.cpp calls for every graph node, and its user data. Its owner must keep both alive while a
     * context uses it: {@link #inUse} says so.
     */
    public static final class EvalCallback {
        private final MemorySegment function;
        private final MemorySegment userData;
        private final Guard guard;
        private final AtomicInteger users = new AtomicInteger();

        public EvalCallback(MemorySegment function, MemorySegment userData) {
            this(function, userData, new Guard("the eval callback"));
        }

        /** With the guard of what the user data is: a context enters it alone while it decodes. */
        public EvalCallback(MemorySegment function, MemorySegment userData, Guard guard) {
            this.function = function;
            this.userData = userData;
            this.guard = guard;
        }

        /** Whether an open context may still call it. */
        public boolean inUse() {
            return users.get() > 0;
        }

        MemorySegment function() {
            return function;
        }

        MemorySegment userData() {
            return userData;
        }

        Guard guard() {
            return guard;
        }

        void acquire() {
            users.incrementAndGet();
        }

        void release() {
            users.decrementAndGet();
        }
    }
}
