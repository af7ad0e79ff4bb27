package dev.kvmerge.eval;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Strategy;
import java.lang.foreign.MemorySegment;

/** A conversation in kvmerge's cache, or in the full one. */
final class CompressedChat implements ChatCache {
    private final CompressedContext context;
    private final CacheOptions options;
    private final boolean windows; // which may have written over what they saw before a question
    private int asked; // tokens since the last that were read for good
    private byte[] before; // the first of those, with windows

    CompressedChat(Model model, Strategy strategy, CacheOptions options) {
        this.options = options;
        this.windows = model.slidingWindow() > 0;
        this.context = new CompressedContext(model, strategy, options);
    }

    @Override
    public void read(int[] tokens) {
        context.decode(tokens, false);
    }

    @Override
    public void pin() {
        context.pin();
    }

    @Override
    public void flush() {
        context.flush();
    }

    @Override
    public void prepare(int tokens) {
        if (tokens >= options.block()) { // a block would be compressed, and could not be taken back
            throw new IllegalArgumentException(tokens + " tokens to ask in a block of " + options.block());
        }
    }

    @Override
    public MemorySegment ask(int[] tokens) {
        asked += tokens.length;
        prepare(asked);
        if (windows && asked == tokens.length && context.position() > 0) {
            before = context.state();
        }
        context.decode(tokens, false);
        return context.logits();
    }

    @Override
    public void forget() {
        if (before != null) {
            restore();
            return;
        }
        int taken = context.takeBack();
        if (taken != asked) {
            throw new IllegalStateException(asked + " tokens were asked and " + taken + " taken back");
        }
        asked = 0;
    }

    private void restore() {
        context.restore(before);
        before = null;
        asked = 0;
    }

    @Override
    public int used() {
        return context.used();
    }

    @Override
    public int allocated() {
        return options.allocated();
    }

    @Override
    public void close() {
        context.close();
    }
}
