package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import java.util.Map;

/**
 * The whole cache in Q8_0 cells, which many use without a thought: not a method of fewer cells, but a scale to read divergences on.
 * "experiment" keeps every cell when it is asked for this, with flash attention, which llama.cpp wants for quantised V.
 */
public record QuantisedCells() implements Strategy {
    /** What the scale is called. */
    public static final String NAME = "q8_0";

    @Override
    public String name() {
        return NAME;
    }

    @Override
    public Map<String, Object> parameters() {
        return Map.of();
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        throw new IllegalStateException("q8_0 is a scale for 'experiment': it keeps every cell");
    }
}
