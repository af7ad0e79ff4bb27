package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.cache.Planner;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.Model;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** The cells of a session and the logits of its newest token. The scheduler's thread alone works with the cells. */
final class Sequence implements AutoCloseable {
    private final Planner planner;
    private final CacheOptions options;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment logits;
    private final CompressedContext context;
    private volatile boolean hasLogits;

    Sequence(Model model, EngineOptions engine) {
        this.planner = engine.strategy().apply(model);
        this.options = engine.cache(model, planner);
        this.logits = arena.allocate(ValueLayout.JAVA_FLOAT, model.vocabularySize());
        try {
            this.context = new CompressedContext(model, planner, options);
        } catch (RuntimeException | Error e) {
            arena.close();
            throw e;
        }
    }

    /**
     * Decodes tokens, and keeps the logits of the last.
     *
     * @return false if it was aborted, and nothing of it counts
     */
    boolean decode(int[] tokens) {
        if (tokens.length > 1) {
            context.flush(); // so that it can be aborted
        }
        try {
            context.decode(tokens, false);
        } catch (Context.Aborted e) {
            return false;
        }
        MemorySegment newest = context.logits();
        MemorySegment.copy(newest, newest.byteSize() - logits.byteSize(), logits, 0, logits.byteSize());
        hasLogits = true;
        return true;
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

    CacheOptions options() {
        return options;
    }

    String strategy() {
        return planner.name();
    }

    @Override
    public void close() {
        context.close();
        arena.close();
    }
}
