package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.Context;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** The cells of a session and the logits of its newest token. The scheduler's thread alone works with the cells. */
final class Sequence implements AutoCloseable {
    private final int number; // in the engine's group
    private final CompressedContext context;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment logits;
    private volatile boolean hasLogits;

    Sequence(int number, CompressedContext context, int vocabulary) {
        this.number = number;
        this.context = context;
        this.logits = arena.allocate(ValueLayout.JAVA_FLOAT, vocabulary);
    }

    int number() {
        return number;
    }

    /**
     * Decodes tokens by themselves, and keeps the logits of the last, also if the compression after that throws.
     *
     * @throws Context.Aborted if it was aborted, and nothing of it counts
     */
    void decode(int[] tokens) {
        int before = context.position();
        try {
            context.decode(tokens, false);
        } catch (RuntimeException | Error e) {
            if (context.position() > before) {
                keepBeside(e);
            }
            throw e;
        }
        keep(context.logits());
    }

    private void keepBeside(Throwable failure) {
        try {
            keep(context.logits());
        } catch (RuntimeException | Error broken) { // the cells were half rewritten: nothing can go on from them
            failure.addSuppressed(broken);
        }
    }

    /** Makes ready for a decode of several tokens: it can be aborted then. */
    void flush() {
        context.flush();
    }

    /** Keeps logits that end with the newest token's. */
    void keep(MemorySegment all) {
        MemorySegment.copy(all, all.byteSize() - logits.byteSize(), logits, 0, logits.byteSize());
        hasLogits = true;
    }

    /** Any thread. */
    void abort(boolean now) {
        context.abort(now);
    }

    /** F32 [vocabulary], of the token that was decoded last. */
    MemorySegment logits() {
        if (!hasLogits) {
            throw new KvmergeException.Usage("nothing was read yet to go on from: give a prompt");
        }
        return logits;
    }

    boolean hasLogits() {
        return hasLogits;
    }

    void setLogits(float[] of) {
        if (of.length > 0) {
            MemorySegment.copy(of, 0, logits, ValueLayout.JAVA_FLOAT, 0, of.length);
        }
        hasLogits = of.length > 0;
    }

    /** Forgets all. */
    void clear() {
        hasLogits = false;
        context.clear();
    }

    CompressedContext context() {
        return context;
    }

    /** Frees what is kept here; the cells are the group's. */
    @Override
    public void close() {
        context.clear();
        arena.close();
    }
}
