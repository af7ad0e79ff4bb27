package dev.kvmerge.engine;

import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.Model;

/**
 * What the cache holds of a session: for every token read whether a layer's KV head has kept it, merged it into
 * another, or dropped it. A picture of one moment: it does not follow the session.
 */
public final class CellsView {
    /** What became of a token in a layer's KV head. */
    public enum Fate {
        /** It has a cell of its own. */
        KEPT,
        /** Its cell is a weighted mean with other tokens'. */
        MERGED,
        /** It is forgotten. */
        DROPPED
    }

    private final int tokens;
    private final int used;
    private final int allocated;
    private final long bytes;
    private final int layers;
    private final int kvHeads;

    /** On the scheduler's thread. */
    static CellsView of(Model model, Sequence sequence) {
        CompressedContext context = sequence.context();
        int tokens = context.position();
        return new CellsView(
                tokens,
                context.used(),
                sequence.options().allocated(),
                tokens == 0 ? 0 : context.info().bytes(),
                model.shape().layers(),
                model.shape().kvHeads());
    }

    private CellsView(int tokens, int used, int allocated, long bytes, int layers, int kvHeads) {
        this.tokens = tokens;
        this.used = used;
        this.allocated = allocated;
        this.bytes = bytes;
        this.layers = layers;
        this.kvHeads = kvHeads;
    }

    /** Tokens that the cache has had. */
    public int tokens() {
        return tokens;
    }

    /** Cells in use, of each layer and KV head. */
    public int cellsInUse() {
        return used;
    }

    /** Cells allocated, of each layer and KV head. */
    public int cellsAllocated() {
        return allocated;
    }

    /** Bytes of the cells allocated; 0 before the first token. */
    public long bytes() {
        return bytes;
    }

    /** Layers that are compressed. */
    public int layers() {
        return layers;
    }

    /** KV heads of a layer. */
    public int kvHeads() {
        return kvHeads;
    }

    /** What became of a token, 0 being the first that was read. */
    public Fate fate(int layer, int kvHead, int token) {
        throw notYet();
    }

    /** Of a merged token, the number of the token whose position its cell has; else the token's own. */
    public int pivot(int layer, int kvHead, int token) {
        throw notYet();
    }

    /** Shares of all layers and KV heads that have kept, merged and dropped a token; they sum to 1. */
    public double[] shares(int token) {
        throw notYet();
    }

    private static UnsupportedOperationException notYet() {
        return new UnsupportedOperationException("the fates of tokens are not recorded yet");
    }
}
