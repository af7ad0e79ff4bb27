package dev.kvmerge.cache;

import dev.kvmerge.Failures;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.kernels.ObserverGroup;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.Model;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.IntFunction;

/**
 * Several sequences in one llama.cpp context, each within its own cells and compressed when its own block is full. A
 * batch takes tokens of several of them, which costs less than one after the other. One thread at a time for all of
 * them.
 *
 * <p>A sequence gives what it gives in a {@link CompressedContext} of its own. llama.cpp multiplies matrices of one
 * token and of several by other kernels: logits can differ in their last bits, as they do between a prompt that is read
 * token by token and in blocks. A batch of one sequence, with the same tokens, gives the same bits.
 *
 * <p>llama.cpp computes tokens of neighbouring sequences together, as many of each: use the sequences from 0 on without
 * a gap, and give parts of equal length where there is a choice.
 */
public final class SequenceGroup implements AutoCloseable {
    /** Which of a part's tokens have logits. */
    public enum Logits {
        NONE,
        LAST,
        ALL
    }

    /**
     * Tokens of a sequence in a batch.
     *
     * @param tokens 1 to {@code options.promptBlock()}
     */
    public record Part(int sequence, int[] tokens, Logits logits) {
        private int rows() {
            return switch (logits) {
                case NONE -> 0;
                case LAST -> 1;
                case ALL -> tokens.length;
            };
        }
    }

    /** What became of a batch's parts, in their order. */
    public static final class Decoded {
        private final Throwable[] failures; // RuntimeExceptions and Errors
        private final MemorySegment[] logits;
        private final boolean[] decoded;

        private Decoded(int parts) {
            failures = new Throwable[parts];
            logits = new MemorySegment[parts];
            decoded = new boolean[parts];
        }

        /**
         * A part's logits: F32 [rows][vocabulary], llama.cpp's memory; valid until the next decode, clear or restore of
         * any sequence of the group. Null where none were asked for, or the part was not decoded.
         */
        public MemorySegment logits(int part) {
            return logits[part];
        }

        /**
         * What a part's sequence threw; null where all went well. It threw before the batch where {@link #isDecoded}
         * says no: nothing of the part counts. Else it threw as it compressed, of which nothing was done: its tokens
         * count, and its next decode compresses again.
         */
        public Throwable failure(int part) {
            return failures[part];
        }

        /** Whether a part's tokens are in the cache. */
        public boolean isDecoded(int part) {
            return decoded[part];
        }

        /** Throws the first failure. */
        public void check() {
            for (Throwable failure : failures) {
                Failures.rethrow(failure);
            }
        }
    }

    private final CacheOptions options;
    private final ObserverGroup observers;
    private final Context context;
    private final List<CompressedContext> sequences = new ArrayList<>();
    private final Guard guard = new Guard("the sequences");

    /**
     * Makes a group of n sequences, all empty.
     *
     * @param planner decides what stays of each
     * @param options of each sequence: cells and capacity are a sequence's
     * @throws KvmergeException as a {@link CompressedContext}; the machine must have the memory for all of them
     */
    public SequenceGroup(Model model, Planner planner, CacheOptions options, int n) {
        this(model, _ -> planner, options, n);
    }

    /**
     * As above, with a planner for each sequence.
     *
     * @param planners asked once for each sequence; all need the same
     */
    public SequenceGroup(Model model, IntFunction<Planner> planners, CacheOptions options, int n) {
        ContextOptions.range("sequences", n, ContextOptions.MOST_SEQUENCES);
        this.options = options;
        List<Planner> all = new ArrayList<>();
        for (int i = 0; i < n; i++) {
            all.add(planners.apply(i));
        }
        Observer.Options observe = Watched.observing(model, all.getFirst(), options);
        for (Planner planner : all) {
            new CacheChecks(model, planner, options).check(observe);
        }
        int batch = (int) Math.min((long) options.promptBlock() * n, ContextOptions.MOST_CELLS);
        ContextOptions made = ContextOptions.of(options.wanted(), batch, n, options.compute());
        CacheChecks.checkMemory(model, options, observe, made);
        observers = new ObserverGroup(model.shape(), options.allocated(), options.promptBlock(), observe, n);
        Context opened = null;
        try {
            opened = new Context(model, made, observers.callback());
            if (opened.cellsOfSequence() != options.allocated()) {
                throw new KvmergeException("llama.cpp made " + opened.cellsOfSequence() + " cells a sequence where "
                        + options.allocated() + " were expected");
            }
            for (int i = 0; i < n; i++) {
                Watched watched = Watched.of(all.get(i), options, observe, observers.sequence(i), opened, i);
                sequences.add(new CompressedContext(all.get(i), options, watched, i));
            }
        } catch (RuntimeException | Error e) {
            sequences.forEach(CompressedContext::free);
            if (opened != null) {
                opened.close();
            }
            observers.close();
            throw e;
        }
        context = opened;
    }

    /** How many sequences there are. */
    public int size() {
        return sequences.size();
    }

    /** How each sequence has its cells. */
    public CacheOptions options() {
        return options;
    }

    /**
     * A sequence: it can be decoded by itself, flushed, asked, pinned, saved and cleared as if it were alone. Its close
     * does nothing: {@link CompressedContext#clear} frees it for other use.
     */
    public CompressedContext sequence(int i) {
        return sequences.get(i);
    }

    /** Most tokens of all parts of a batch together. */
    public int batch() {
        return context.batch();
    }

    /**
     * Decodes tokens of several sequences in one batch, each after what its sequence has. A sequence whose block fills
     * compresses, before or after. What one sequence throws leaves the others whole, and is told by the result.
     *
     * @param parts of different sequences, in any order
     * @throws KvmergeException if llama.cpp cannot decode the batch; then no part counts
     * @throws IllegalArgumentException if there is none, a sequence is there twice or is none, or a part is empty or
     *     longer than a prompt's block
     * @throws IllegalStateException if the group is closed, or in use by another thread
     */
    public Decoded decode(List<Part> parts) {
        check(parts);
        Decoded result = new Decoded(parts.size());
        try (Guard.Use _ = guard.exclusive()) {
            List<Guard.Use> inside = new ArrayList<>();
            try {
                decode(parts, result, inside);
            } finally {
                inside.forEach(Guard.Use::close);
            }
        }
        return result;
    }

    private void check(List<Part> parts) {
        if (parts.isEmpty()) {
            throw new IllegalArgumentException("a batch without parts");
        }
        Set<Integer> named = new HashSet<>();
        for (Part part : parts) {
            if (part.sequence < 0 || part.sequence >= size() || !named.add(part.sequence)) {
                throw new IllegalArgumentException(
                        "sequence " + part.sequence + " is there twice, or is none: there are " + size());
            }
            sequence(part.sequence).checkBlock(part.tokens.length);
        }
    }

    private void decode(List<Part> parts, Decoded result, List<Guard.Use> inside) {
        List<Integer> ready = new ArrayList<>(); // parts, in the order of their sequences
        for (int i = 0; i < parts.size(); i++) {
            CompressedContext sequence = sequence(parts.get(i).sequence);
            try {
                inside.add(sequence.enter());
                sequence.blocks().prepare(parts.get(i).tokens.length);
                ready.add(i);
            } catch (RuntimeException | Error e) {
                result.failures[i] = e;
            }
        }
        if (ready.isEmpty()) {
            return;
        }
        ready.sort(Comparator.comparingInt(i -> parts.get(i).sequence));
        List<Context.Item> items = new ArrayList<>();
        for (int i : ready) {
            add(parts.get(i), items);
        }
        long start = System.nanoTime();
        try {
            context.decode(items.size(), items::get);
        } catch (KvmergeException e) {
            for (int i : ready) {
                sequence(parts.get(i).sequence).blocks().undo(parts.get(i).tokens.length, e);
            }
            throw e;
        }
        long each = (System.nanoTime() - start) / ready.size();
        long row = 0;
        long bytes = 4L * context.model().vocabularySize();
        MemorySegment logits = context.logitRows() == 0 ? null : context.logits();
        for (int i : ready) {
            int rows = parts.get(i).rows();
            result.logits[i] = rows == 0 ? null : logits.asSlice(row * bytes, rows * bytes);
            row += rows;
        }
        for (int i : ready) {
            try {
                result.decoded[i] = true;
                sequence(parts.get(i).sequence).blocks().decoded(parts.get(i).tokens.length, each);
            } catch (RuntimeException | Error e) {
                result.failures[i] = e;
            }
        }
    }

    private void add(Part part, List<Context.Item> items) {
        int position = sequence(part.sequence).blocks().nextPosition();
        int n = part.tokens.length;
        for (int t = 0; t < n; t++) {
            boolean output = part.logits == Logits.ALL || (part.logits == Logits.LAST && t == n - 1);
            items.add(new Context.Item(part.tokens[t], position + t, part.sequence, output));
        }
    }

    /**
     * Frees the sequences and their context.
     *
     * @throws IllegalStateException if a thread is inside; what is not freed then stays open
     */
    @Override
    public void close() {
        guard.close(() -> {
            sequences.forEach(CompressedContext::free);
            context.close();
            observers.close();
        });
    }
}
