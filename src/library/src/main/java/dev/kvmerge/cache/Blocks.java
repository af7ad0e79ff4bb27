package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Context;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * One sequence's blocks, one after the other: counts what was decoded and the table does not have yet, takes it into
 * the table or back, and compresses when the cells are more than stay. Guards nothing: {@link CompressedContext} lets
 * one thread in.
 */
final class Blocks {
    private final int length; // most tokens of a block
    private final int largest; // the same of a prompt
    private final int sequence; // of the context
    private final boolean remembers; // what was observed of the last block
    private final Observer observer;
    private final Context context;
    private final Compressor compressor;
    private final Timings timings = new Timings();
    private Observer.Stats lastStats;
    private int pending; // tokens decoded that the table does not have yet
    private boolean begun; // a block of the observer, in which nothing was decoded if nothing is pending
    private long decodedNanos; // of those
    private boolean planning; // a compression was begun, and its planner threw
    private Throwable broken; // what left llama.cpp's cells and the table disagreeing

    private final int trained; // positions; past them the model gets worse by itself
    private boolean warned;

    /**
     * Of an empty sequence.
     *
     * @param options say how long blocks are
     * @param remembers whether {@link #lastStats} is asked for
     */
    Blocks(Watched watched, CacheOptions options, int sequence, boolean remembers) {
        this.length = options.block();
        this.largest = options.promptBlock();
        this.sequence = sequence;
        this.remembers = remembers;
        this.observer = watched.observer();
        this.context = watched.context();
        this.compressor = watched.compressor();
        this.trained = context.model().trainedContext();
    }

    /** What left llama.cpp's cells and the table disagreeing; null where they agree. */
    Throwable broken() {
        return broken;
    }

    int pending() {
        return pending;
    }

    Timings timings() {
        return timings;
    }

    Observer.Stats lastStats() {
        return lastStats;
    }

    /** Before a decode of n tokens: has room for them, in the cells and in the block; a prompt has its own. */
    void prepare(int n) {
        if (pending + n > length) {
            settle();
        }
        compressIfFull(); // what a planner that threw, or an account, has left
        if (pending == 0 && !begun) {
            observer.begin();
            begun = true;
        }
    }

    /** After a decode of n tokens: compresses when they have filled the block; a prompt has. */
    void decoded(int n, long nanos) {
        decodedNanos += nanos;
        pending += n;
        warnPastTraining();
        if (pending >= length) {
            settle();
        }
    }

    private void warnPastTraining() {
        if (!warned && nextPosition() > trained) {
            warned = true;
            System.getLogger("dev.kvmerge")
                    .log(
                            System.Logger.Level.WARNING,
                            "the text goes past the {0,number,#} positions the model was trained on, where it gets"
                                    + " worse by itself: give the cache a position range of {1,number,#} at most, which"
                                    + " leaves room for a block",
                            trained,
                            Math.max(0, trained - largest));
        }
    }

    /** As llama.cpp knows it: of the next token. */
    int nextPosition() {
        return compressor.usage().position() + pending;
    }

    /**
     * Whether layers with sliding windows still have the whole window of the token at a position: they let go of what
     * no window sees any more as each ubatch comes.
     */
    boolean windowsReachBackTo(int position) {
        int window = context.model().slidingWindow();
        return window == 0 || context.oldestPosition(sequence) <= Math.max(0, position - window + 1);
    }

    /**
     * After a decode of n tokens that failed, which has changed nothing then: tokens of it that are in the cache are
     * freed, and what was seen of them is forgotten. Where its first ubatches have overwritten what the windows of
     * tokens before it see, that cannot be, and the cache is broken.
     */
    void undo(int n, KvmergeException e) {
        int position = nextPosition();
        try {
            context.removePositions(sequence, position, position + n);
            if (pending == 0) {
                observer.forget();
            } else if (observer.stats().tokenCell().length != pending) {
                broken = e; // what was seen of it cannot be told from the tokens before
            }
            if (context.newestPosition(sequence) != position - 1 || !windowsReachBackTo(position)) {
                broken = e;
            }
        } catch (RuntimeException | Error worse) {
            broken = e;
            e.addSuppressed(worse);
        }
    }

    /** Takes back the tokens that the table does not have yet; how many. */
    int takeBack() {
        int taken = pending;
        if (taken == 0) {
            return 0;
        }
        int position = nextPosition();
        try {
            context.removePositions(sequence, position - taken, position);
            observer.forget();
        } catch (RuntimeException | Error e) {
            broken = e;
            throw e;
        }
        pending = 0;
        timings.addDecode(decodedNanos);
        decodedNanos = 0;
        return taken;
    }

    boolean isSettled() {
        return pending == 0 && !planning;
    }

    /** Ends the block: takes what was decoded into the table, and compresses where that is due. */
    void settle() {
        if (!isSettled()) {
            take();
            compressIfFull();
        }
    }

    /** Takes what was observed into the table. */
    void take() {
        if (pending == 0) {
            return;
        }
        long nanos;
        try {
            nanos = compressor.take(pending);
        } catch (KvmergeException e) {
            broken = e; // what was seen of the block gets no better
            throw e;
        }
        timings.addObserve(nanos);
        timings.addDecode(decodedNanos - nanos);
        decodedNanos = 0;
        pending = 0;
        begun = false;
        lastStats = remembers ? observer.stats() : null;
    }

    private void compressIfFull() {
        if (compressor.isFull()) {
            compress();
        }
    }

    /** What throws before the first cell is written changes nothing. */
    private void compress() {
        planning = true;
        long start = System.nanoTime();
        Plan[] plans = compressor.plan();
        long planned = System.nanoTime();
        timings.addPlan(planned - start);
        try {
            compressor.carryOut(plans);
        } catch (RuntimeException | Error e) {
            broken = compressor.usage().broken() || !compressor.isFull() ? e : null;
            throw e;
        }
        planning = false;
        timings.addApply(System.nanoTime() - planned);
    }

    /** The whole state, with what was decoded until now. */
    MemorySegment save(Arena arena) {
        take();
        return compressor.table().save(arena);
    }

    /** Takes over a state; what throws changes nothing, or is what broke the cells. */
    void restore(MemorySegment state) {
        try {
            compressor.table().restore(state);
        } catch (KvmergeException e) {
            compressor.look();
            broken = compressor.usage().broken() && broken == null ? e : broken;
            throw e;
        }
        begin();
    }

    /** Forgets everything, and what broke the cells too. */
    void clear() {
        compressor.table().clear();
        begin();
    }

    private void begin() {
        compressor.look();
        pending = 0;
        begun = false;
        decodedNanos = 0;
        lastStats = null;
        planning = false;
        broken = null;
    }
}
