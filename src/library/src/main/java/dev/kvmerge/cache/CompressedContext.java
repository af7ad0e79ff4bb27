package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.LlamaCache;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.MemorySegment;
import java.util.Objects;
import java.util.function.IntConsumer;
import java.util.function.Supplier;
import java.util.stream.IntStream;

/**
 * A llama.cpp context that never holds more than a number of KV cells: text of any length goes in, a block at a time,
 * and after each block a {@link Planner} decides for every layer and KV head what stays. One sequence, one thread at a
 * time.
 */
public final class CompressedContext implements AutoCloseable {
    private final Planner planner;
    private final Needs needs; // the planner's
    private final CacheOptions options;
    private final CellTable.Shown observed; // by a caller; a planner is shown no more than it declares
    private final Observer observer;
    private final Context context;
    private final CellTable table;
    private final Shape shape;
    private final boolean windows; // some of the model's layers have sliding windows
    private final Timings timings = new Timings();
    private final ThreadLocal<CellVectors.Buffer> buffers = ThreadLocal.withInitial(CellVectors.Buffer::new);
    private Observer.CacheInfo info;
    private Observer.Stats lastStats;
    private int decoded; // tokens so far
    private int position; // of the next token, as llama.cpp knows it: the same but in a context with a position range
    private int pending; // tokens decoded that the table does not have yet
    private boolean begun; // a block of the observer, in which nothing was decoded if nothing is pending
    private int[] unforeseen = {}; // cells of the newest tokens that a calibration has yet to be asked about
    private final int trained; // positions; past them the model gets worse by itself
    private boolean warned;
    private boolean planning; // a compression was begun, and its planner threw
    private final Object aborting = new Object();
    private boolean abort; // what the caller wants
    private boolean abortable; // the decode that runs
    private Throwable broken; // what left llama.cpp's cells and the table disagreeing
    private final Guard guard = new Guard("the compressed context");
    private long decodedNanos; // of those

    /** Where the time went, in nanoseconds. */
    public static final class Timings {
        private long decode;
        private long observe;
        private long plan;
        private long apply;

        private Timings() {}

        /** Inside llama.cpp, without the observer. */
        public long decode() {
            return decode;
        }

        /** In the eval callback. */
        public long observe() {
            return observe;
        }

        /** Deciding, reading keys and values included. */
        public long plan() {
            return plan;
        }

        /** Rewriting and freeing cells. */
        public long apply() {
            return apply;
        }

        /** Observing, planning and applying. */
        public long overhead() {
            return observe + plan + apply;
        }

        /** All of it. */
        public long total() {
            return decode + overhead();
        }
    }

    /**
     * Makes a context.
     *
     * @param planner decides what stays; one that keeps everything ({@code Full}) needs {@code options.cells() == 0}
     * @throws KvmergeException if the planner needs what the options do not give, or llama.cpp cannot make the context
     */
    public CompressedContext(Model model, Planner planner, CacheOptions options) {
        this(model, planner, options, observing(model, planner, options));
    }

    /**
     * As above, and observes what is asked for beyond the planner's needs.
     *
     * @throws KvmergeException.Usage also if less is observed than the planner needs
     */
    public CompressedContext(Model model, Planner planner, CacheOptions options, Observer.Options observe) {
        this.planner = given(planner);
        this.needs = planner.needs();
        this.options = options;
        this.shape = model.shape();
        this.windows = model.slidingWindow() > 0;
        new CacheChecks(model, planner, options).check(observe);
        this.observed = new CellTable.Shown(
                observe.mass(),
                observe.entropy(),
                observe.queries() || observe.bias() == Bias.FOLDED,
                needs.calibration() != null);
        this.trained = model.trainedContext();
        int cells = LlamaCache.padded(options.wanted());
        ContextOptions contextOptions = ContextOptions.of(options.wanted(), options.block(), options.compute());
        CacheChecks.checkMemory(model, contextOptions, CellTable.entries(shape, cells));
        this.observer = new Observer(shape, cells, options.block(), observe);
        Context made = null;
        try {
            made = new Context(model, contextOptions, observer.callback());
            if (made.cells() > cells) {
                throw new KvmergeException(
                        "llama.cpp made " + made.cells() + " cells where " + cells + " were expected");
            }
            this.table = new CellTable(shape, cells, windows);
        } catch (RuntimeException | Error e) {
            if (made != null) {
                made.close();
            }
            observer.close();
            throw e;
        }
        this.context = made;
    }

    private static Planner given(Planner planner) {
        return Objects.requireNonNull(planner, "no planner: new Full() keeps every cell");
    }

    private static Observer.Options observing(Model model, Planner planner, CacheOptions options) {
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
        if (tokens.length == 0 || tokens.length > options.block()) {
            throw new IllegalArgumentException(
                    "a block of " + tokens.length + " tokens; it takes 1 to " + options.block());
        }
        try (Guard.Use _ = enter()) {
            if (pending + tokens.length > options.block()) {
                settle();
            }
            compressIfFull(); // what a planner that threw, or an account, has left
            if (pending == 0 && !begun) {
                observer.begin();
                begun = true;
            }
            long start = System.nanoTime();
            decodeOrBreak(tokens, allLogits);
            decodedNanos += System.nanoTime() - start;
            pending += tokens.length;
            position += tokens.length;
            decoded += tokens.length;
            warnPastTraining();
            if (pending == options.block()) {
                settle();
            }
        }
    }

    /**
     * A decode that failed has changed nothing: tokens of it that are in the cache are freed, and what was seen of them
     * is forgotten.
     */
    private void decodeOrBreak(int[] tokens, boolean allLogits) {
        arm(pending == 0);
        try {
            context.decode(tokens, position, allLogits);
        } catch (KvmergeException e) {
            try {
                context.removePositions(position, position + tokens.length);
                if (pending == 0) {
                    observer.forget();
                }
                if (context.newestPosition() != position - 1) {
                    broken = e;
                }
            } catch (RuntimeException | Error worse) {
                broken = e;
                e.addSuppressed(worse);
            }
            throw e;
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
        if (position > trained && !warned) {
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
    private Guard.Use enter() {
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

    private boolean isSettled() {
        return pending == 0 && !planning;
    }

    private void settle() {
        if (!isSettled()) {
            take();
            compressIfFull();
            foresee();
        }
    }

    private void compressIfFull() {
        if (!planner.keepsAll() && table.used() > options.cells()) {
            compress();
        }
    }

    /** Takes what was observed into the table. */
    private void take() {
        if (pending == 0) {
            return;
        }
        Observer.Stats stats = observer.stats();
        timings.observe += stats.nanos();
        timings.decode += decodedNanos - stats.nanos();
        decodedNanos = 0;
        if (stats.tokenCell().length != pending) {
            throw new KvmergeException("the graph showed " + stats.tokenCell().length + " cache writes for " + pending
                    + " tokens: this model's attention is not the ordinary one");
        }
        if (stats.mass() != null && stats.layersSeen() != shape.layers()) {
            throw new KvmergeException("the attention of " + (shape.layers() - stats.layersSeen()) + " of "
                    + shape.layers() + " layers could not be observed: this model's attention is not the ordinary one");
        }
        if (info == null) {
            info = observer.cacheInfo();
            if (needs.calibration() != null) {
                needs.calibration().checkKeys(info.keyDimension());
            }
        }
        lastStats = stats;
        table.add(stats.tokenCell(), decoded - pending, position - pending, stats, needs.massDecay());
        pending = 0;
        begun = false;
        unforeseen = IntStream.concat(IntStream.of(unforeseen), IntStream.of(stats.tokenCell()))
                .toArray();
    }

    private void foresee() {
        if (needs.calibration() != null && unforeseen.length > 0) {
            long start = System.nanoTime();
            int[] positions = positions(unforeseen);
            each(pair -> foresee(pair, positions));
            timings.plan += System.nanoTime() - start;
        }
        unforeseen = new int[0];
    }

    /** Calls body for every layer and KV head, on as many threads as the context computes on. */
    private void each(IntConsumer body) {
        Parallel.each(shape.pairs(), options.compute().threads(), body);
    }

    private int[] positions(int[] newest) {
        return IntStream.range(position - newest.length, position).toArray();
    }

    private void foresee(int pair, int[] positions) {
        Calibration calibration = needs.calibration();
        if (calibration == null || positions.length == 0) {
            return;
        }
        Observer.Projection seen = observer.project(
                pair / shape.kvHeads(),
                pair % shape.kvHeads(),
                unforeseen,
                positions,
                calibration.keyWeights(pair),
                info);
        table.foresee(pair, calibration.prior(pair, seen.products(), seen.lengths()));
    }

    /**
     * Takes account of what was decoded since the last compression, without compressing: when nothing more is to come.
     * If more comes all the same, the next decode compresses first.
     */
    public void account() {
        try (Guard.Use _ = enter()) {
            take();
            foresee();
        }
    }

    /**
     * Plans, rewrites the cells, and moves the table last: what throws before the first cell is written changes
     * nothing.
     */
    private void compress() {
        planning = true;
        int budget = options.cells();
        int back = options.positionRange() > 0 ? Math.max(0, position - options.positionRange()) : 0;
        long start = System.nanoTime();
        CellTable.Rewrite rewrite = table.rewrite(budget, back);
        int[] positions = positions(unforeseen);
        CellTable.Shown declared =
                new CellTable.Shown(needs.mass(), needs.entropy(), needs.queries(), needs.calibration() != null);
        Plan[] plans = new Plan[shape.pairs()];
        int[][] adding = new int[plans.length][]; // the cells' numbers, in the order that the plans know them by
        each(pair -> {
            foresee(pair, positions);
            plans[pair] = planner.plan(stats(pair, buffers::get, declared), budget);
            rewrite.stage(pair, plans[pair]);
            Rewriting.checkAdded(shape, pair, plans[pair], table.used() * info.valueDimension());
            adding[pair] = plans[pair].addedValues() != null ? table.order(pair) : null;
        });
        long planned = System.nanoTime();
        timings.plan += planned - start;
        CellTable.Moves moves = rewrite.moves();
        Rewriting rewriting = new Rewriting(observer, shape, info);
        try {
            rewriting.write(moves, needs.pivotFrame());
        } catch (RuntimeException | Error e) {
            broken = isUntouched(e) ? null : e;
            throw e;
        }
        try {
            for (int pair = 0; pair < plans.length; pair++) {
                if (adding[pair] != null) {
                    rewriting.addValues(pair, plans[pair], adding[pair], moves);
                }
            }
            free(budget, back);
        } catch (RuntimeException | Error e) {
            broken = e;
            throw e;
        }
        rewrite.commit();
        planning = false;
        unforeseen = new int[0];
        timings.apply += System.nanoTime() - planned;
    }

    /** Whether a rewriting that failed had not begun to write. */
    private boolean isUntouched(Throwable failure) {
        try {
            return observer.isWhole();
        } catch (IllegalStateException e) { // another thread is inside: what it kept out wrote nothing
            return failure instanceof IllegalStateException;
        }
    }

    /** Frees the cells that do not stay in llama.cpp's record. */
    private void free(int budget, int back) {
        if (windows) {
            context.removePositions(0, position - budget);
            return;
        }
        // llama.cpp's record: cells 0 .. budget-2 keep the positions they first had, which are those numbers. Behind
        // them one cell stays, and the text goes on after its position: in a context with a position range that is not
        // the newest one. So llama.cpp never shifts positions, and never rotates keys: its shift would multiply all
        // keys
        // by YaRN's factor each time.
        position -= back;
        context.removePositions(budget - 1, position - 1);
        context.removePositions(position, position + back);
    }

    /** The last block's logits: F32 [tokens][vocabulary]; valid until the next decode. */
    public MemorySegment logits() {
        try (Guard.Use _ = enter()) {
            return context.logits();
        }
    }

    /**
     * What was decoded so far is never dropped or merged from now on: planners see only what comes after it.
     *
     * @throws KvmergeException.Usage if that would leave the planner fewer cells than it needs; nothing changes then
     */
    public void pin() {
        throw new UnsupportedOperationException("pinning does not work yet");
    }

    /** Cells that are pinned. */
    public int pinned() {
        return 0;
    }

    /**
     * Writes the whole state: cells, table, statistics and llama.cpp's positions, but not the last logits. What was
     * decoded since the last compression is taken account of first. A context of the same model, planner and options
     * that restores it goes on with the same bits.
     *
     * @throws java.io.IOException if the channel cannot take it
     * @throws KvmergeException.Usage if the model has sliding windows
     */
    public void saveState(java.nio.channels.WritableByteChannel to) throws java.io.IOException {
        throw new UnsupportedOperationException("saving does not work yet");
    }

    /**
     * Takes over a state that {@link #saveState} wrote, in place of what there is. Reads no more than that from the
     * channel. Logits are there after the next decode.
     *
     * @throws java.io.IOException if the channel ends before the state does, or cannot be read
     * @throws KvmergeException if the state is another kind of context's, or damaged; nothing changes then
     */
    public void restoreState(java.nio.channels.ReadableByteChannel from) throws java.io.IOException {
        throw new UnsupportedOperationException("restoring does not work yet");
    }

    /** Gives another context of the same model, planner and options this one's state. */
    public void forkInto(CompressedContext other) {
        throw new UnsupportedOperationException("forking does not work yet");
    }

    /**
     * What became of every token that was read, for a layer and KV head, after a {@link #flush}: its own number where
     * it is kept; the number of the token into whose cell it was merged; -1 where it is dropped, by itself or in the
     * cell that it was merged into.
     *
     * @throws IllegalStateException if the options do not ask for it ({@link CacheOptions#withFates})
     */
    public int[] fates(int layer, int kvHead) {
        throw new UnsupportedOperationException("fates are not recorded yet");
    }

    /** Tokens decoded so far. */
    public int position() {
        return decoded;
    }

    /** Cells in use. */
    public int used() {
        return table.used() + pending;
    }

    /** Where the cells lie and how many bytes they take. */
    public Observer.CacheInfo info() {
        return info == null ? observer.cacheInfo() : info;
    }

    /** Bytes of the Java heap that the table of the cells takes. */
    public long tableBytes() {
        return table.bytes();
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
        if (layer < 0 || layer >= shape.layers() || kvHead < 0 || kvHead >= shape.kvHeads()) {
            throw new IllegalArgumentException("no KV head " + kvHead + " of layer " + layer + ": there are "
                    + shape.kvHeads() + " in each of " + shape.layers() + " layers that are compressed");
        }
        if (!isSettled()) {
            flush();
        }
        try (Guard.Use _ = read()) {
            if (table.used() == 0) {
                throw new IllegalStateException("no cells yet: decode something first");
            }
            return stats(layer * shape.kvHeads() + kvHead, CellVectors.Buffer::new, observed);
        }
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
        observer.keyRotation(layer, info).undo(cells.position(), cells.keys());
        return cells;
    }

    private CellStats stats(int pair, Supplier<CellVectors.Buffer> buffer, CellTable.Shown shown) {
        return table.stats(
                pair,
                shown,
                cells -> observer.cells(pair / shape.kvHeads(), pair % shape.kvHeads(), cells, info, buffer),
                () -> observer.queryMoments(pair / shape.kvHeads(), pair % shape.kvHeads(), info));
    }

    Context context() {
        return context;
    }

    Observer observer() {
        return observer;
    }

    CellTable table() {
        return table;
    }

    /**
     * Frees the context.
     *
     * @throws IllegalStateException if a thread is inside; it stays open then
     */
    @Override
    public void close() {
        guard.close(() -> {
            context.close();
            observer.close();
        });
    }
}
