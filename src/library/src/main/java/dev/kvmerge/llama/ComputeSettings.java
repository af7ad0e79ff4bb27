package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import java.util.Objects;

/**
 * How llama.cpp computes: what all contexts of a program usually share. The names are llama.cpp's options.
 *
 * @param threads CPU threads (-t)
 * @param ubatch most tokens computed at once (-ub); a context whose batch is smaller takes its batch
 * @param flashAttention -fa
 * @param keyType type of the K cells (-ctk)
 * @param valueType type of the V cells (-ctv)
 * @param observation how attention is observed (--observe, which is kvmerge's)
 * @param observedQueries of a block's captured queries, about so many, evenly spaced, tell what attention the cells
 *     get, each for those between; 0 for all (--observe-queries, which is kvmerge's)
 */
public record ComputeSettings(
        int threads,
        int ubatch,
        FlashAttention flashAttention,
        CellType keyType,
        CellType valueType,
        Observation observation,
        int observedQueries) {
    /** How attention is seen. */
    public enum Observation {
        /** Captured with flash attention and on devices; without it in host memory, the graph is stopped. */
        AUTO,
        /** llama.cpp's graph copies the queries as it runs, and they are looked at once a block. */
        CAPTURE,
        /** llama.cpp's graph is stopped at each layer. */
        STOP;

        /** Whether queries are captured so, where nothing else stands against it. */
        public boolean captures(boolean flashAttention, boolean onCpu) {
            return this != STOP && (flashAttention || this == CAPTURE || !onCpu);
        }
    }

    /** Most CPU threads. */
    public static final int MOST_THREADS = 1024;

    /** A quarter of a usual block of 128: KL hardly notices, docs/parameters.md. */
    public static final int OBSERVED_QUERIES = 32;

    private static final int UBATCH = 512;

    public ComputeSettings {
        ContextOptions.range("threads (-t)", threads, MOST_THREADS);
        ContextOptions.range("ubatch (-ub)", ubatch, Integer.MAX_VALUE);
        Objects.requireNonNull(flashAttention, "flashAttention");
        Objects.requireNonNull(keyType, "keyType");
        Objects.requireNonNull(valueType, "valueType");
        Objects.requireNonNull(observation, "observation");
        if (observedQueries < 0) {
            throw new KvmergeException.Usage(
                    "the observed queries (--observe-queries) are a number of a block's queries,"
                            + " or 0 for all, not " + observedQueries);
        }
    }

    /** All cores, llama.cpp's ubatch and F16 cells; flash attention off, which shows the attention for less. */
    public static ComputeSettings usual() {
        int threads = Runtime.getRuntime().availableProcessors();
        return new ComputeSettings(
                threads, UBATCH, FlashAttention.OFF, CellType.F16, CellType.F16, Observation.AUTO, OBSERVED_QUERIES);
    }

    /**
     * Refuses what llama.cpp would fail on without saying why.
     *
     * @throws KvmergeException.Usage for quantised values without flash attention
     */
    public void checkCellTypes() {
        if (valueType.isQuantised() && flashAttention == FlashAttention.OFF) {
            throw new KvmergeException.Usage("llama.cpp takes quantised V cells (-ctv " + valueType.text()
                    + ") with flash attention only: add -fa on");
        }
    }

    /**
     * Whether queries may be captured.
     *
     * @param onCpu whether all layers are the CPU's
     */
    public boolean captures(boolean onCpu) {
        return observation.captures(flashAttention != FlashAttention.OFF, onCpu);
    }

    /** The same on another number of threads. */
    public ComputeSettings withThreads(int n) {
        return new ComputeSettings(n, ubatch, flashAttention, keyType, valueType, observation, observedQueries);
    }

    /** The same with another number of tokens computed at once. */
    public ComputeSettings withUbatch(int n) {
        return new ComputeSettings(threads, n, flashAttention, keyType, valueType, observation, observedQueries);
    }

    /** The same with flash attention on, off, or as llama.cpp chooses. */
    public ComputeSettings withFlashAttention(FlashAttention f) {
        return new ComputeSettings(threads, ubatch, f, keyType, valueType, observation, observedQueries);
    }

    /** The same with cells of other types. */
    public ComputeSettings withCellTypes(CellType k, CellType v) {
        return new ComputeSettings(threads, ubatch, flashAttention, k, v, observation, observedQueries);
    }

    /** The same with cells of other types; with flash attention where llama.cpp wants it for them. */
    public ComputeSettings withCells(CellTypes types) {
        ComputeSettings same = withCellTypes(types.keys(), types.values());
        return types.values().isQuantised() ? same.withFlashAttention(FlashAttention.ON) : same;
    }

    /** The types of the K and V cells. */
    public CellTypes cells() {
        return new CellTypes(keyType, valueType);
    }

    /** The same with attention observed in another way. */
    public ComputeSettings withObservation(Observation o) {
        return new ComputeSettings(threads, ubatch, flashAttention, keyType, valueType, o, observedQueries);
    }

    /** The same with about so many of a block's queries observed; 0 for all. */
    public ComputeSettings withObservedQueries(int n) {
        return new ComputeSettings(threads, ubatch, flashAttention, keyType, valueType, observation, n);
    }
}
