package dev.kvmerge.llama;

/**
 * What is assumed of llama.cpp's KV cache on this side of the border; native/src/llama_graph.hpp holds all else. Tokens
 * go to the first free cells, which is why the cells that stay are kept in front; and a sequence goes on after the
 * newest position that is left.
 */
public final class LlamaCache {
    /** What a layer's tensor of keys is called, before the layer's number. */
    static final String KEYS = "cache_k_l";

    /** Multiple that a context's cells are rounded up to. */
    static final int PADDING = 256;

    private LlamaCache() {}

    /** Cells of a context that was asked for so many. */
    public static int padded(int cells) {
        return Math.multiplyExact(Math.ceilDiv(cells, PADDING), PADDING);
    }
}
