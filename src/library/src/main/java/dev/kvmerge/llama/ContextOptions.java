package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.lang.foreign.MemorySegment;
import java.util.Locale;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * How to make a llama.cpp context.
 *
 * @param cells KV cells of all sequences together (-c); llama.cpp gives each as many, rounded up to a multiple of 256
 * @param batch most tokens a decode (-b); more than the cells is of no use, and counts as so many
 * @param sequences sequences side by side, at most 256. Each has cells of its own: a stream of llama.cpp's
 * @param compute how llama.cpp computes
 */
public record ContextOptions(int cells, int batch, int sequences, ComputeSettings compute) {
    /** Most cells of a context. */
    public static final int MOST_CELLS = 1 << 30;
    /** Most sequences side by side: llama.cpp's LLAMA_MAX_SEQ. */
    public static final int MOST_SEQUENCES = 256;

    public ContextOptions {
        range("cells (-c)", cells, MOST_CELLS);
        range("batch (-b)", batch, Integer.MAX_VALUE);
        range("sequences", sequences, MOST_SEQUENCES);
        Objects.requireNonNull(compute, "compute");
    }

    /** Refuses a value that is not in 1..most. */
    public static void range(String name, int value, int most) {
        if (value <= 0) {
            throw new KvmergeException.Usage(name + " must be positive, not " + value);
        }
        if (value > most) {
            throw new KvmergeException.Usage(name + " must be at most " + most + ", not " + value);
        }
    }

    /** One sequence. */
    public static ContextOptions of(int cells, int batch, ComputeSettings compute) {
        return new ContextOptions(cells, batch, 1, compute);
    }

    /** Several sequences, of so many cells each. */
    public static ContextOptions of(int cells, int batch, int sequences, ComputeSettings compute) {
        long all = (long) LlamaCache.padded(cells) * sequences;
        if (all > MOST_CELLS) {
            throw new KvmergeException.Usage(sequences + " sequences of " + cells + " cells are more than a context of "
                    + MOST_CELLS + " holds: use fewer");
        }
        return new ContextOptions((int) all, batch, sequences, compute);
    }

    /** Most tokens computed at once: no more than are decoded. */
    public int ubatch() {
        return Math.min(compute.ubatch(), batch);
    }

    /** llama.cpp's -fa. */
    public enum FlashAttention {
        AUTO,
        OFF,
        ON
    }

    /** Types of KV cells that llama.cpp can be asked for. */
    public enum CellType {
        F32(4),
        F16(2),
        BF16(2),
        Q8_0(34 / 32.0),
        Q5_1(24 / 32.0),
        Q5_0(22 / 32.0),
        Q4_1(20 / 32.0),
        Q4_0(18 / 32.0),
        IQ4_NL(18 / 32.0);

        /** Elements of a block of a quantised type: a head's size is a multiple of it. */
        public static final int BLOCK = 32;

        private final double bytes;

        CellType(double bytes) {
            this.bytes = bytes;
        }

        /** Bytes an element: quantised ones come in blocks, with a factor of two bytes, and some an offset of two. */
        public double bytes() {
            return bytes;
        }

        /** Whether values of it need flash attention, which is llama.cpp's rule. */
        public boolean isQuantised() {
            return ordinal() >= Q8_0.ordinal();
        }

        /** As -ctk and -ctv have it: "q8_0". */
        public String text() {
            return name().toLowerCase(Locale.ROOT);
        }
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
