package dev.kvmerge.llama;

import java.util.List;

/** Bytes of the KV cells that llama.cpp allocates. */
public final class CellMemory {
    public static final double MIB = 1 << 20;

    private static final String LATENT = ".attention.key_length_mla";

    private CellMemory() {}

    /** Of one cell, in all layers whose cells grow with the context. */
    public static double ofCell(Model model, CellTypes types) {
        return of(model, types, model.fullLayers());
    }

    /**
     * Of the layers with sliding windows, for each sequence: a window and an ubatch, padded, however many cells the
     * other layers have. 0 of a model without.
     *
     * @param batch most tokens decoded at once
     */
    public static double ofWindows(Model model, CellTypes types, int batch, ComputeSettings compute) {
        int window = model.slidingWindow();
        return window == 0
                ? 0
                : LlamaCache.padded(window + Math.min(compute.ubatch(), batch))
                        * of(model, types, model.windowedLayers());
    }

    /**
     * As {@link #mostCells(Model, CellTypes, double)}, beside the layers with sliding windows, which have their share
     * of the bytes.
     *
     * @param batch most tokens decoded at once
     */
    public static int mostCells(Model model, CellTypes types, double bytes, int batch, ComputeSettings compute) {
        return mostCells(model, types, bytes - ofWindows(model, types, batch, compute));
    }

    private static double of(Model model, CellTypes types, List<Integer> layers) {
        GgufHeader header = model.header();
        boolean values = !header.metadata().containsKey(header.architecture() + LATENT); // else they are in the keys
        double bytes = 0;
        for (int layer : layers) {
            bytes += header.kvHeads(layer)
                    * (header.headSize("attention.key_length", layer)
                                    * types.keys().bytes()
                            + (values ? header.headSize("attention.value_length", layer) : 0)
                                    * types.values().bytes());
        }
        return bytes;
    }

    /** Elements of a key of the layers whose cells grow with the context. */
    public static long keyDimension(Model model) {
        return model.header()
                .headSize("attention.key_length", model.fullLayers().getFirst());
    }

    /**
     * The most cells, of all sequences together, that a context allocates no more than so many bytes for, in the layers
     * whose cells grow with it.
     *
     * @return a multiple of llama.cpp's padding; 0 where not even that fits
     */
    public static int mostCells(Model model, CellTypes types, double bytes) {
        double paddings = Math.floor(Math.max(0, bytes) / (ofCell(model, types) * LlamaCache.PADDING));
        return (int) Math.min(paddings, ContextOptions.MOST_CELLS / LlamaCache.PADDING) * LlamaCache.PADDING;
    }
}
