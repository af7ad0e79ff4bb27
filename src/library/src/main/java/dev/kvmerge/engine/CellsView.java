package dev.kvmerge.engine;

import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.Shape;

/**
 * What the cache holds of a session: for every token read whether a layer's KV head has kept it, merged it into
 * another, or dropped it. A picture of one moment: it does not follow the session.
 */
public final class CellsView {
    /** What became of a token in a layer's KV head. */
    public enum Fate {
        /** It has a cell, into which others may have been merged. */
        KEPT,
        /** It was merged into another token's cell. */
        MERGED,
        /** It is forgotten. */
        DROPPED
    }

    private static final int GONE = -1;

    private final CellsUsage usage;
    private final Shape shape;
    private final int[][] fates; // [layer * kvHeads + kvHead][token]: whose cell it is in

    private CellsView(CellsUsage usage, Shape shape, int[][] fates) {
        this.usage = usage;
        this.shape = shape;
        this.fates = fates;
    }

    /** On the scheduler's thread. */
    static CellsView of(Engine engine, Sequence sequence, int pinned) {
        CompressedContext context = sequence.context();
        Shape shape = engine.model().shape();
        CellsUsage usage = CellsUsage.of(engine, sequence, pinned);
        int[][] fates = new int[shape.pairs()][0];
        for (int pair = 0; usage.tokens() > 0 && pair < fates.length; pair++) {
            fates[pair] = context.fates(pair / shape.kvHeads(), pair % shape.kvHeads());
        }
        return new CellsView(usage, shape, fates);
    }

    /** Tokens that the cache has had. */
    public int tokens() {
        return usage.tokens();
    }

    /** Cells in use, of each layer and KV head. */
    public int cellsInUse() {
        return usage.cellsInUse();
    }

    /** Cells allocated, of each layer and KV head. */
    public int cellsAllocated() {
        return usage.cellsAllocated();
    }

    /** Bytes of the cells allocated; 0 before the first token. */
    public long bytes() {
        return usage.bytes();
    }

    /** Leading tokens that were there when the session was pinned; 0 if it was not. */
    public int pinned() {
        return usage.pinned();
    }

    /** Layers that are compressed. */
    public int layers() {
        return shape.layers();
    }

    /** KV heads of a layer. */
    public int kvHeads() {
        return shape.kvHeads();
    }

    /** What became of a token, 0 being the first that was read. */
    public Fate fate(int layer, int kvHead, int token) {
        int in = into(layer, kvHead, token);
        return in == GONE ? Fate.DROPPED : in == token ? Fate.KEPT : Fate.MERGED;
    }

    /** Of a merged token, the number of the token whose cell it is in; else the token's own. */
    public int pivot(int layer, int kvHead, int token) {
        int in = into(layer, kvHead, token);
        return in == GONE ? token : in;
    }

    /** Shares of all layers and KV heads that have kept, merged and dropped a token; they sum to 1. */
    public double[] shares(int token) {
        int[] count = new int[Fate.values().length];
        for (int layer = 0; layer < layers(); layer++) {
            for (int kvHead = 0; kvHead < kvHeads(); kvHead++) {
                count[fate(layer, kvHead, token).ordinal()]++;
            }
        }
        double[] shares = new double[count.length];
        for (int i = 0; i < count.length; i++) {
            shares[i] = count[i] / (double) fates.length;
        }
        return shares;
    }

    private int into(int layer, int kvHead, int token) {
        if (layer < 0 || layer >= layers() || kvHead < 0 || kvHead >= kvHeads() || token < 0 || token >= tokens()) {
            throw new IllegalArgumentException("no token " + token + " of layer " + layer + " and KV head " + kvHead
                    + ": there are " + tokens() + " tokens, " + layers() + " layers that are compressed and "
                    + kvHeads()
                    + " KV heads in each");
        }
        return fates[layer * kvHeads() + kvHead][token];
    }
}
