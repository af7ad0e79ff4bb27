package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.CellTable;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.Channels;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;
import java.util.stream.IntStream;

/**
 * A llama.cpp context that never holds more than a number of KV cells: text of any length goes in, a block at a time,
 * and after each block a {@link Planner} decides for every layer and KV head what stays. One sequence, one thread at a
 * time. Several sequences in one llama.cpp context: {@link SequenceGroup}.
 */
public final class CompressedContext implements AutoCloseable {
    private final Planner planner;
    private final CacheOptions options;
    private final Watched watched;
    private final Blocks blocks;
    private final AbortSwitch abort;
    private final int sequence; // of the context
    private final boolean owner; // of observer and context, which else are a group's
    private final Guard guard = new Guard("the compressed context");

    /**
     * Makes a context.
     *
     * @param planner decides what stays; one that keeps everything ({@code Full}) needs {@code options.cells() == 0}
     * @throws KvmergeException if the planner needs what the options do not give, or llama.cpp cannot make the context
     */
    public CompressedContext(Model model, Planner planner, CacheOptions options) {
        this(
                planner,
                options,
                Watched.open(model, planner, options, Watched.observing(model, planner, options)),
                0,
                true,
                false);
    }

    /**
     * As above, and observes what is asked for beyond the planner's needs.
     *
     * @throws KvmergeException.Usage also if less is observed than the planner needs
     */
    public CompressedContext(Model model, Planner planner, CacheOptions options, Observer.Options observe) {
        this(planner, options, Watched.open(model, planner, options, observe), 0, true, true);
    }

    /** A sequence of a group's context. */
    CompressedContext(Planner planner, CacheOptions options, Watched watched, int sequence) {
        this(planner, options, watched, sequence, false, false);
    }

    private CompressedContext(
            Planner planner, CacheOptions options, Watched watched, int sequence, boolean owner, boolean remembers) {
        this.planner = planner;
        this.options = options;
        this.watched = watched;
        this.blocks = new Blocks(watched, options, sequence, remembers);
        this.abort = new AbortSwitch(watched.context());
        this.sequence = sequence;
        this.owner = owner;
    }

    /**
     * Decodes tokens after what is there, with logits for each. When a block's worth has come together since the last
     * compression, it compresses: a text can be fed in blocks, and a generation token by token. More than a block are
     * of a prompt: they are compressed at once, and what came before them first.
     *
     * @param tokens 1 to {@code options.promptBlock()} tokens
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
            blocks.prepare(tokens.length);
            int position = blocks.nextPosition();
            long start = System.nanoTime();
            abort.allow(blocks.pending() == 0);
            try {
                int last = tokens.length - 1;
                context()
                        .decode(
                                tokens.length,
                                i -> new Context.Item(tokens[i], position + i, sequence, allLogits || i == last));
            } catch (KvmergeException e) {
                blocks.undo(tokens.length, e);
                throw e;
            } finally {
                abort.allow(false);
            }
            blocks.decoded(tokens.length, System.nanoTime() - start);
        }
    }

    /** Refuses a number of tokens that no decode takes. */
    void checkBlock(int n) {
        if (n == 0 || n > options.promptBlock()) {
            throw new IllegalArgumentException("a block of " + n + " tokens; it takes 1 to " + options.promptBlock());
        }
    }

    /**
     * Ends the decode that runs, or the next one, with {@link Context.Aborted}, and nothing of it counts; or takes that
     * back. Only a decode after a {@link #flush}, or of a whole block, ends early: what was seen of the tokens before
     * could not be told from what was seen of it. Of a model with sliding windows, a decode of several ubatches may
     * have overwritten what the windows before it see: {@link #isBroken} says so then. Any thread, but not beside
     * {@link #close}.
     */
    public void abort(boolean now) {
        abort.want(now);
    }

    /**
     * Whether rewriting or decoding has failed half-way: until {@link #clear} or {@link #restoreState}, all is refused.
     */
    public boolean isBroken() {
        return blocks.broken() != null;
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
        if (isBroken()) {
            inside.close();
            throw new IllegalStateException(
                    "the compressed context is broken, since rewriting or decoding failed half-way: close it and make"
                            + " another",
                    blocks.broken());
        }
        return inside;
    }

    /**
     * Takes account of what was decoded since the last compression and compresses if the cells in use are more than the
     * budget.
     */
    public void flush() {
        try (Guard.Use _ = enter()) {
            blocks.settle();
        }
    }

    /**
     * Takes back the tokens decoded since the last compression or {@link #flush}, as if they had never been: what was
     * asked of a text is forgotten, and the text goes on, or is asked again. Where llama.cpp's graph is stopped to
     * observe it, the queries' moments, which a folded bias goes by, keep what they have seen of many tokens at once.
     *
     * @return how many
     * @throws KvmergeException.Usage if {@link #canTakeBack} says no; nothing changes then
     */
    public int takeBack() {
        try (Guard.Use _ = enter()) {
            if (!windowsReachBack()) {
                throw new KvmergeException.Usage(blocks.pending() + " tokens cannot be taken back: layers with sliding"
                        + " windows of " + context().model().slidingWindow() + " positions have written over what they"
                        + " saw before. Save the state before, and restore it");
            }
            return blocks.takeBack();
        }
    }

    /**
     * Whether {@link #takeBack} can be: layers with sliding windows let go of what no window sees any more, and may not
     * have the window of an earlier token.
     */
    public boolean canTakeBack() {
        try (Guard.Use _ = enter()) {
            return windowsReachBack();
        }
    }

    private boolean windowsReachBack() {
        return blocks.pending() == 0 || blocks.windowsReachBackTo(blocks.nextPosition() - blocks.pending());
    }

    /** How many tokens {@link #takeBack} would take back. */
    public int recent() {
        return blocks.pending();
    }

    /**
     * Takes account of what was decoded since the last compression, without compressing: when nothing more is to come.
     * If more comes all the same, the next decode compresses first.
     */
    public void account() {
        try (Guard.Use _ = enter()) {
            blocks.take();
        }
    }

    /** The last block's logits: F32 [tokens][vocabulary]; valid until the next decode. */
    public MemorySegment logits() {
        try (Guard.Use _ = enter()) {
            return context().logits();
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
            blocks.take();
            table().pin(planner.fewestCells(1));
            compressor().look();
        }
    }

    /** Cells that are pinned. */
    public int pinned() {
        return compressor().usage().pinned();
    }

    /** Forgets everything that was decoded, pins too: as a new context. */
    public void clear() {
        try (Guard.Use _ = guard.exclusive()) {
            blocks.clear();
        }
    }

    /**
     * Writes the whole state: cells, table, statistics and llama.cpp's positions, but not the last logits. What was
     * decoded since the last compression is taken account of first. A context of the same model, planner and options
     * that restores it goes on with the same bits.
     *
     * @throws IOException if the channel cannot take it
     * @throws KvmergeException if nothing is decoded yet
     */
    public void saveState(WritableByteChannel to) throws IOException {
        try (Arena local = Arena.ofConfined()) {
            State.write(state(local), to);
        }
    }

    private MemorySegment state(Arena arena) {
        try (Guard.Use _ = enter()) {
            return blocks.save(arena);
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

    /** The state that {@link #saveState} writes, in memory. */
    public byte[] state() {
        ByteArrayOutputStream state = new ByteArrayOutputStream();
        try {
            saveState(Channels.newChannel(state));
        } catch (IOException e) {
            throw new IllegalStateException("memory takes everything", e);
        }
        return state.toByteArray();
    }

    /**
     * Takes over what {@link #state} gave, as {@link #restoreState} does.
     *
     * @throws KvmergeException also if it is cut short; nothing changes then
     */
    public void restore(byte[] state) {
        try {
            restoreState(Channels.newChannel(new ByteArrayInputStream(state)));
        } catch (IOException e) {
            throw new KvmergeException("the state is cut short: give all of what state() gave", e);
        }
    }

    private void restore(MemorySegment state) {
        try (Guard.Use _ = guard.exclusive()) {
            blocks.restore(state);
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
        return compressor().usage().tokens() + blocks.pending();
    }

    /** Cells in use. */
    public int used() {
        return compressor().usage().cells() + blocks.pending();
    }

    /** Where the cells lie and how many bytes they take. */
    public Observer.CacheInfo info() {
        return compressor().info();
    }

    /**
     * Bytes that kvmerge keeps beside the cells, as of the last block: the table, plans, what was observed and the
     * queries captured for it, and cells read for strategies in Java. On devices too.
     */
    public long tableBytes() {
        return compressor().usage().bytes();
    }

    /** What was observed of the last block that was flushed, before its compression. */
    public Observer.Stats lastStats() {
        return blocks.lastStats();
    }

    public Timings timings() {
        return blocks.timings();
    }

    /** What is known of the cells of a layer and KV head, after a {@link #flush}. Then several threads may ask. */
    public CellStats cells(int layer, int kvHead) {
        int pair = pair(layer, kvHead);
        if (!blocks.isSettled()) {
            flush();
        }
        try (Guard.Use _ = read()) {
            if (compressor().usage().cells() == 0) {
                throw new IllegalStateException("no cells yet: decode something first");
            }
            return compressor().stats(pair, CellVectors.Buffer::new, watched.shown(), true);
        }
    }

    private int pair(int layer, int kvHead) {
        Shape shape = context().model().shape();
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
        observer().keyRotation(layer, info()).undo(cells.position(), cells.keys());
        return cells;
    }

    Blocks blocks() {
        return blocks;
    }

    Context context() {
        return watched.context();
    }

    Observer observer() {
        return watched.observer();
    }

    private Compressor compressor() {
        return watched.compressor();
    }

    CellTable table() {
        return compressor().table();
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
            compressor().close();
            if (owner) {
                context().close();
                observer().close();
            }
        });
    }
}
