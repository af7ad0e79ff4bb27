package dev.kvmerge.strategy;

/**
 * The whole cache in Q8_0 cells, which many use without a thought. "experiment" reads it with flash attention, which
 * llama.cpp wants for quantised V.
 */
public record QuantisedCells() implements Scale {
    /** What the scale is called. */
    public static final String NAME = "q8_0";

    @Override
    public String name() {
        return NAME;
    }
}
