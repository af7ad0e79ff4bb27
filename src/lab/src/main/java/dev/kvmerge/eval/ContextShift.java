package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Model;
import java.lang.foreign.MemorySegment;

/**
 * What llama.cpp itself does when a context is full, as llama-cli and llama-server with --context-shift do it: the
 * first n_keep tokens stay, of the rest the older half is dropped, and the others' positions move up to what was kept.
 */
public final class ContextShift implements ChatCache {
    /** Its name among strategies. */
    public static final String NAME = "context-shift";

    private final Context context;
    private final int block;
    private int keep; // tokens of those at the start stay
    private int past; // tokens in the cache, and the next position
    private int asked; // of them, since the last that were read for good
    private int shifts;

    /**
     * Makes a context.
     *
     * @param cells of it; llama.cpp rounds up
     * @param block most tokens decoded at once
     * @throws KvmergeException if llama.cpp cannot shift this model's cache
     */
    ContextShift(Model model, int cells, int block, ComputeSettings compute) {
        this.block = block;
        this.context = new Context(model, ContextOptions.of(cells, block, compute), null);
        if (!context.canMovePositions()) {
            context.close();
            throw new KvmergeException("llama.cpp cannot shift the context of the model " + model.path()
                    + ", which has sliding windows: leave context-shift out of --strategies");
        }
    }

    @Override
    public void read(int[] tokens) {
        prepare(tokens.length);
        decode(tokens);
    }

    @Override
    public void pin() {
        if ((context.cells() - past) / 2 <= block) {
            throw new KvmergeException.Usage("a context shift of " + context.cells() + " cells that keeps " + past
                    + " leaves no room for a block of " + block + ": use more --cells");
        }
        keep = past;
    }

    @Override
    public void flush() {} // the context is shifted when it is full, and not before

    /** What does not fit shifts the context, which it would at the question too: that stays. */
    @Override
    public void prepare(int tokens) {
        if (past + tokens < context.cells()) {
            return;
        }
        int discard = (past - keep) / 2;
        context.removePositions(keep, keep + discard);
        context.movePositions(keep + discard, past, -discard);
        past -= discard;
        shifts++;
    }

    @Override
    public MemorySegment ask(int[] tokens) {
        decode(tokens);
        asked += tokens.length;
        return context.logits();
    }

    private void decode(int[] tokens) {
        context.decode(tokens, past, false);
        past += tokens.length;
    }

    @Override
    public void forget() {
        context.removePositions(past - asked, past);
        past -= asked;
        asked = 0;
    }

    /** How often the context was shifted. */
    int shifts() {
        return shifts;
    }

    @Override
    public int used() {
        return past;
    }

    @Override
    public int allocated() {
        return context.cells();
    }

    @Override
    public void close() {
        context.close();
    }
}
