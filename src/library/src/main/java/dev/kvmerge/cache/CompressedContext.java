package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellTable;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;
import java.util.Objects;
import java.util.stream.IntStream;

/**
 * A llama.cpp context that never holds more than a number of KV cells: text of any length goes in, a block at a time,
 * and after each block a {@link Planner} decides for every layer and KV head what stays. One sequence, one thread at a
 * time. Several sequences in one llama.cpp context: {@link SequenceGroup}.
 */
public final class CompressedContext implements AutoCloseable {
    private final Planner planner;
    private final CacheOptions options;
    private final Compressor.Shown observed; // by a caller; a planner is shown no more than it declares
    private final boolean remembers; // what was observed of the last block
    private final Observer observer;
    private final Context context;
    private final int sequence; // of the context
    private final boolean owner; // of observer and context, which else are a group's
    private final Compressor compressor;
    private final Shape shape;
    private final Timings timings = new Timings();
    private Observer.Stats lastStats;
    private int pending; // tokens decoded that the table does not have yet
    private boolean begun; // a block of the observer, in which nothing was decoded if nothing is pending
    private long decodedNanos; // of those
    private final int trained; // positions; past them the model gets worse by itself
    private boolean warned;
    private boolean planning; // a compression was begun, and its planner threw
    private final Object aborting = new Object();
    private boolean abort; // what the caller wants
    private boolean abortable; // the decode that runs
    private Throwable broken; // what left llama.cpp's cells and the table disagreeing
    private final Guard guard = new Guard("the compressed context");

    /**
     * Makes a context.
     *
     * @param planner decides what stays; one that keeps everything ({@code Full}) needs {@code options.cells() == 0}
     * @throws KvmergeException if the planner needs what the options do not give, or llama.cpp cannot make the context
     */
    public CompressedContext(Model model, Planner planner, CacheOptions options) {
        this(model, planner, options, observing(model, planner, options), false);
    }

    /**
     * As above, and observes what is asked for beyond the planner's needs.
     *
     * @throws KvmergeException.Usage also if less is observed than the planner needs
     */
    public CompressedContext(Model model, Planner planner, CacheOptions options, Observer.Options observe) {
        this(model, planner, options, observe, true);
    }

    private CompressedContext(
            Model model, Planner planner, CacheOptions options, Observer.Options observe, boolean remembers) {
        this.planner = given(planner);
        this.options = options;
        this.remembers = remembers;
        this.sequence = 0;
        this.owner = true;
        this.shape = model.shape();
        new CacheChecks(model, planner, options).check(observe);
        this.observed = shown(planner, observe);
        this.trained = model.trainedContext();
        int cells = options.allocated();
        ContextOptions contextOptions = ContextOptions.of(options.wanted(), options.block(), options.compute());
        CacheChecks.checkMemory(model, options, contextOptions);
        this.observer = new Observer(shape, cells, options.block(), observe);
        Context made = null;
        try {
            made = new Context(model, contextOptions, observer.callback());
            if (made.cells() > cells) {
                throw new KvmergeException(
                        "llama.cpp made " + made.cells() + " cells where " + cells + " were expected");
            }
            this.compressor = new Compressor(planner, options, model.slidingWindow() > 0, observer, made, 0);
        } catch (RuntimeException | Error e) {
            if (made != null) {
                made.close();
            }
            observer.close();
            throw e;
        }
        this.context = made;
    }

    /** A sequence of a group's context, and the group's observer of it. */
    CompressedContext(
            Planner planner,
            CacheOptions options,
            Observer.Options observe,
            Observer observer,
            Context context,
            int sequence) {
        Model model = context.model();
        this.planner = planner;
        this.options = options;
        this.remembers = false;
        this.sequence = sequence;
        this.owner = false;
        this.shape = model.shape();
        this.observed = shown(planner, observe);
        this.trained = model.trainedContext();
        this.observer = observer;
        this.context = context;
        this.compressor = new Compressor(planner, options, model.slidingWindow() > 0, observer, context, sequence);
    }

    private static Compressor.Shown shown(Planner planner, Observer.Options observe) {
        return new Compressor.Shown(
                observe.mass(),
                observe.entropy(),
                observe.queries() || observe.bias() == Bias.FOLDED,
                planner.needs().calibration() != null);
    }

    private static Planner given(Planner planner) {
        return Objects.requireNonNull(planner, "no planner: new Full() keeps every cell");
    }

    static Observer.Options observing(Model model, Planner planner, CacheOptions options) {
        Needs needs = given(planner).needs();
        return Observer.Options.of(
                        needs.mass(),
                        needs.entropy(),
                        needs.bias(),
                        options.compute().threads())
                .withMassPower(needs.massPower())
                .withMassQueries(needs.massQueries())
                .withQueries(needs.queries())
                .withBackend(model.backend())
                .withObservation(options.compute().observation());
    }

    /**
     * Decodes tokens after what is there, with logits for each. When a block's worth has come together since the last
     * compression, it compresses: a text can be fed in blocks, and a generation token by token.
     *
     * @param tokens 1 to {@code options.block()} tokens
     */
    public void decode(int[] tokens) {
        decode(tokens, true);
    }

    /**
     * As above, with logits for each token or, which costs less, for the last one alone.
     *
     * @throws KvmergeException if llama.cpp cannot, or the planner's plan is refused; what the planner throws is thrown
     *     too. Of the compression then nothing was done: the tokens that were decoded count, and the next call plans
     *     again
     * @throws IllegalStateException if the context is closed, in use by another thread, or broken by a rewriting of its
     *     cells that failed half-way
     */
    public void decode(int[] tokens, boolean allLogits) {
        checkBlock(tokens.length);
        try (Guard.Use _ = enter()) {
            prepare(tokens.length);
            int position = nextPosition();
            long start = System.nanoTime();
            arm(pending == 0);
            try {
                int last = tokens.length - 1;
                context.decode(
                        tokens.length,
                        i -> new Context.Item(tokens[i], position + i, sequence, allLogits || i == last));
            } catch (KvmergeException e) {
                undo(tokens.length, e);
                throw e;
            } finally {
                arm(false);
            }
            decoded(tokens.length, System.nanoTime() - start);
        }
    }

    /** Refuses a number of tokens that no decode takes. */
    void checkBlock(int n) {
        if (n == 0 || n > options.block()) {
            throw new IllegalArgumentException("a block of " + n + " tokens; it takes 1 to " + options.block());
        }
    }

    /** Before a decode of n tokens: has room for them, in the cells and in the block. */
    void prepare(int n) {
        if (pending + n > options.block()) {
            settle();
        }
        compressIfFull(); // what a planner that threw, or an account, has left
        if (pending == 0 && !begun) {
            observer.begin();
            begun = true;
        }
    }

    /** After a decode of n tokens: compresses when they have filled the block. */
    void decoded(int n, long nanos) {
        decodedNanos += nanos;
        pending += n;
        warnPastTraining();
        if (pending == options.block()) {
            settle();
        }
    }

    /** As llama.cpp knows it: of the next token. */
    int nextPosition() {
        return compressor.usage().position() + pending;
    }

    /**
     * After a decode of n tokens that failed, which has changed nothing then: tokens of it that are in the cache are
     * freed, and what was seen of them is forgotten.
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
            if (context.newestPosition(sequence) != position - 1) {
                broken = e;
            }
        } catch (RuntimeException | Error worse) {
            broken = e;
            e.addSuppressed(worse);
        }
    }

    /**
     * Ends the decode that runs, or the next one, with {@link Context.Aborted}, and nothing of it counts; or takes that
     * back. Only a decode after a {@link #flush}, or of a whole block, ends early: what was seen of the tokens before
     * could not be told from what was seen of it. Any thread, but not beside {@link #close}.
     */
    public void abort(boolean now) {
        synchronized (aborting) {
            abort = now;
            context.abort(now && abortable);
        }
    }

    private void arm(boolean now) {
        synchronized (aborting) {
            abortable = now;
            context.abort(abort && now);
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
                            Math.max(0, trained - options.block()));
        }
    }

    /** Enters alone; refused when the cells and the table no longer agree. */
    Guard.Use enter() {
        return whole(guard.exclusive());
    }

    /** Enters beside others who read. */
    private Guard.Use read() {
        return whole(guard.shared());
    }

    private Guard.Use whole(Guard.Use inside) {
        if (broken != null) {
            inside.close();
            throw new IllegalStateException(
                    "the compressed context is broken, since rewriting or decoding failed half-way: close it and make"
                            + " another",
                    broken);
        }
        return inside;
    }

    /**
     * Takes account of what was decoded since the last compression and compresses if the cells in use are more than the
     * budget.
     */
    public void flush() {
        try (Guard.Use _ = enter()) {
            settle();
        }
    }

    /**
     * Takes back the tokens decoded since the last compression or {@link #flush}, as if they had never been: what was
     * asked of a text is forgotten, and the text goes on, or is asked again. Where llama.cpp's graph is stopped to
     * observe it, the queries' moments, which a folded bias goes by, keep what they have seen of many tokens at once.
     *
     * @return how many
     */
    public int takeBack() {
        try (Guard.Use _ = enter()) {
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
    }

    private boolean isSettled() {
        return pending == 0 && !planning;
    }

    private void settle() {
        if (!isSettled()) {
            take();
            compressIfFull();
        }
    }

    private void compressIfFull() {
        if (compressor.isFull()) {
            compress();
        }
    }

    /** Takes what was observed into the table. */
    private void take() {
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

    /**
     * Takes account of what was decoded since the last compression, without compressing: when nothing more is to come.
     * If more comes all the same, the next decode compresses first.
     */
    public void account() {
        try (Guard.Use _ = enter()) {
            take();
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

    /** The last block's logits: F32 [tokens][vocabulary]; valid until the next decode. */
    public MemorySegment logits() {
        try (Guard.Use _ = enter()) {
            return context.logits();
        }
    }

    /**
     * What was decoded so far is never dropped or merged from now on: planners see only what comes after it, and have
     * the cells that it leaves. Its attention is observed as before.
     *
     * @throws KvmergeException.Usage if that would leave the planner fewer cells than it needs; nothing changes then
     */
    public void pin() {
        try (Guard.Use _ = enter()) {
            take();
            table().pin(planner.fewestCells(1));
            compressor.look();
        }
    }

    /** Cells that are pinned. */
    public int pinned() {
        return compressor.usage().pinned();
    }

    /** Forgets everything that was decoded, pins too: as a new context. */
    public void clear() {
        try (Guard.Use _ = guard.exclusive()) {
            table().clear();
            begin();
        }
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

    /**
     * Writes the whole state: cells, table, statistics and llama.cpp's positions, but not the last logits. What was
     * decoded since the last compression is taken account of first. A context of the same model, planner and options
     * that restores it goes on with the same bits.
     *
     * @throws IOException if the channel cannot take it
     * @throws KvmergeException if nothing is decoded yet, or the model has sliding windows
     */
    public void saveState(WritableByteChannel to) throws IOException {
        try (Arena local = Arena.ofConfined()) {
            State.write(state(local), to);
        }
    }

    private MemorySegment state(Arena arena) {
        try (Guard.Use _ = enter()) {
            take();
            return table().save(arena);
        }
    }

    /**
     * Takes over a state that {@link #saveState} wrote, in place of what there is. Reads no more than that from the
     * channel. Logits are there after the next decode.
     *
     * @throws IOException if the channel ends before the state does, or cannot be read
     * @throws KvmergeException if the state is another kind of context's, or damaged; nothing changes then
     */
    public void restoreState(ReadableByteChannel from) throws IOException {
        try (Arena local = Arena.ofConfined()) {
            restore(State.read(from, local));
        }
    }

    private void restore(MemorySegment state) {
        try (Guard.Use _ = guard.exclusive()) {
            try {
                table().restore(state);
            } catch (KvmergeException e) {
                compressor.look();
                broken = compressor.usage().broken() && broken == null ? e : broken;
                throw e;
            }
            begin();
        }
    }

    /** Gives another context of the same model, planner and options this one's state. */
    public void forkInto(CompressedContext other) {
        if (used() == 0) {
            other.clear();
            return;
        }
        try (Arena local = Arena.ofConfined()) {
            other.restore(state(local));
        }
    }

    /**
     * What became of every token that was decoded, for a layer and KV head: its own number where it is kept, as all of
     * a block that is not full yet; the number of the token into whose cell it was merged; -1 where it is dropped, by
     * itself or in the cell that it was merged into.
     *
     * @throws KvmergeException if the options do not ask for it ({@link CacheOptions#withFates})
     */
    public int[] fates(int layer, int kvHead) {
        int pair = pair(layer, kvHead);
        try (Guard.Use _ = read()) {
            int[] fates = table().fates(pair);
            return IntStream.concat(IntStream.of(fates), IntStream.range(fates.length, position()))
                    .toArray();
        }
    }

    /** Tokens decoded so far. */
    public int position() {
        return compressor.usage().tokens() + pending;
    }

    /** Cells in use. */
    public int used() {
        return compressor.usage().cells() + pending;
    }

    /** Where the cells lie and how many bytes they take. */
    public Observer.CacheInfo info() {
        return compressor.info();
    }

    /** Bytes of native memory that the table of the cells takes. */
    public long tableBytes() {
        return compressor.usage().bytes();
    }

    /** What was observed of the last block that was flushed, before its compression. */
    public Observer.Stats lastStats() {
        return lastStats;
    }

    public Timings timings() {
        return timings;
    }

    /** What is known of the cells of a layer and KV head, after a {@link #flush}. Then several threads may ask. */
    public CellStats cells(int layer, int kvHead) {
        int pair = pair(layer, kvHead);
        if (!isSettled()) {
            flush();
        }
        try (Guard.Use _ = read()) {
            if (compressor.usage().cells() == 0) {
                throw new IllegalStateException("no cells yet: decode something first");
            }
            return compressor.stats(pair, CellVectors.Buffer::new, observed, true);
        }
    }

    private int pair(int layer, int kvHead) {
        if (layer < 0 || layer >= shape.layers() || kvHead < 0 || kvHead >= shape.kvHeads()) {
            throw new IllegalArgumentException("no KV head " + kvHead + " of layer " + layer + ": there are "
                    + shape.kvHeads() + " in each of " + shape.layers() + " layers that are compressed");
        }
        return layer * shape.kvHeads() + kvHead;
    }

    /**
     * As {@link #cells}, with keys as they were before their rotation.
     *
     * @throws IllegalStateException if the context has a position range: keys there do not carry the rotation of their
     *     position
     */
    public CellStats unrotated(int layer, int kvHead) {
        if (options.positionRange() > 0) {
            throw new IllegalStateException(
                    "the keys of a context with a position range carry other positions than the text's");
        }
        CellStats cells = cells(layer, kvHead);
        observer.keyRotation(layer, info()).undo(cells.position(), cells.keys());
        return cells;
    }

    Context context() {
        return context;
    }

    Observer observer() {
        return observer;
    }

    CellTable table() {
        return compressor.table();
    }

    /**
     * Frees the context. A sequence of a group is closed with the group.
     *
     * @throws IllegalStateException if a thread is inside; it stays open then
     */
    @Override
    public void close() {
        if (owner) {
            free();
        }
    }

    void free() {
        guard.close(() -> {
            compressor.close();
            if (owner) {
                context.close();
                observer.close();
            }
        });
    }
}
