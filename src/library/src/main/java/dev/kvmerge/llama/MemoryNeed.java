package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ContextOptions.FlashAttention;

/**
 * What a context takes of the host's memory, at least: its cells, the scores of a ubatch, and what is kept beside them.
 * Asked before llama.cpp touches the memory, since a machine that has not so much ends the process and not the call.
 *
 * @param cells bytes of the K and V cells, of the layers without a sliding window; 0 where a device holds them
 * @param scores bytes of the scores and the mask, where flash attention does not do without the first; 0 likewise
 * @param tables bytes of what is kept beside the cells
 * @param queries bytes of a block's captured queries; 0 where they are looked at on a GPU
 */
record MemoryNeed(long cells, long scores, long tables, long queries) {
    private static final long MIB = 1 << 20;

    /**
     * The memory that a context is going to take.
     *
     * @param brought whether captured queries come to the host to be looked at even from a GPU
     */
    static MemoryNeed of(Model model, ContextOptions options, long tables, long queries, boolean brought) {
        GgufHeader header = model.header();
        double n = LlamaCache.padded(options.cells());
        double cells = n
                * CellMemory.ofCell(
                        model,
                        new CellTypes(
                                options.compute().keyType(), options.compute().valueType()));
        long heads = 0;
        for (int layer : model.fullLayers()) {
            heads = Math.max(heads, header.heads(layer));
        }
        double rows = Math.min(Math.min(options.ubatch(), options.batch()), n);
        double seen = n / options.sequences(); // a sequence has cells of its own
        double scores = rows * seen * 4 * (options.compute().flashAttention() == FlashAttention.OFF ? heads + 1 : 1);
        boolean host = model.backend() == Backend.CPU;
        return new MemoryNeed(
                host ? (long) cells : 0,
                host ? (long) scores : 0,
                tables,
                brought || model.backend() != Backend.CUDA ? queries : 0);
    }

    /** All of it; more than any machine has, where it is no long. */
    long total() {
        return (long) ((double) cells + scores + tables + queries);
    }

    /**
     * Refuses what does not fit.
     *
     * @param free bytes
     */
    void check(int n, long free) {
        if (total() > free) {
            throw new KvmergeException("a context of " + n + " cells needs " + Math.ceilDiv(total(), MIB) + " MiB ("
                    + Math.ceilDiv(cells, MIB) + " of cells, " + Math.ceilDiv(scores, MIB) + " of scores, "
                    + Math.ceilDiv(tables, MIB) + " of tables"
                    + (queries > 0 ? ", " + Math.ceilDiv(queries, MIB) + " of captured queries" : "") + "), and "
                    + free / MIB + " MiB are free: use fewer cells (--cells, -c or a shorter text), a smaller -ub, or"
                    + " -ctk q8_0"
                    + (queries > 0
                            ? "; for fewer queries a smaller --prompt-block or --block, or --observe stop"
                            : ""));
        }
    }
}
