package dev.kvmerge.llama;

/** Bytes of the KV cells that llama.cpp allocates in the layers whose cells grow with the context. */
public final class CellMemory {
    public static final double MIB = 1 << 20;

    private static final String LATENT = ".attention.key_length_mla";

    private CellMemory() {}

    /** Of one cell, in all of those layers. */
    public static double ofCell(Model model, CellTypes types) {
        GgufHeader header = model.header();
        boolean values = !header.metadata().containsKey(header.architecture() + LATENT); // else they are in the keys
        double bytes = 0;
        for (int layer : model.fullLayers()) {
            bytes += header.kvHeads(layer)
                    * (header.headSize("attention.key_length", layer)
                                    * types.keys().bytes()
                            + (values ? header.headSize("attention.value_length", layer) : 0)
                                    * types.values().bytes());
        }
        return bytes;
    }

    /**
     * The most cells, of all sequences together, that a context allocates no more than so many bytes for.
     *
     * @return a multiple of llama.cpp's padding; 0 where not even that fits
     */
    public static int mostCells(Model model, CellTypes types, double bytes) {
        double paddings = Math.floor(bytes / (ofCell(model, types) * LlamaCache.PADDING));
        return (int) Math.min(paddings, ContextOptions.MOST_CELLS / LlamaCache.PADDING) * LlamaCache.PADDING;
    }
}
