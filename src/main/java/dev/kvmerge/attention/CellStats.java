package dev.kvmerge.attention;

import dev.kvmerge.kernels.Observer;
import java.util.function.Supplier;

/**
 * What is known of the cells of one layer and KV head, in position order: what a strategy decides from. Index i runs over cells in
 * use, oldest position first; it is not llama.cpp's cell number. The arrays are the strategy's to read, not to keep.
 */
public final class CellStats {
    private final int layer;
    private final int kvHead;
    private final int[] position;
    private final float[] mass;
    private final float[] entropy;
    private final int[] count;
    private final Supplier<Observer.Vectors> vectorSource;
    private final Supplier<Observer.QueryMoments> querySource;
    private Observer.Vectors vectors;
    private Observer.QueryMoments queries;

    /**
     * Cells made by hand or read from a cache.
     *
     * @param position [n], ascending; of a merged cell, its pivot's
     * @param mass [n], attention received, decayed as the planner asks; all 0 when not observed
     * @param entropy [n], of the token's own attention row, 0..1; all 0 when not observed
     * @param count [n], tokens merged into the cell, 1 for a plain one
     * @param vectors reads keys and values when they are first asked for
     * @param queries reads the query moments when they are first asked for
     */
    public CellStats(
            int layer,
            int kvHead,
            int[] position,
            float[] mass,
            float[] entropy,
            int[] count,
            Supplier<Observer.Vectors> vectors,
            Supplier<Observer.QueryMoments> queries) {
        int n = position.length;
        if (n == 0 || mass.length != n || entropy.length != n || count.length != n) {
            throw new IllegalArgumentException("cells of different numbers: " + n + ", " + mass.length + ", "
                    + entropy.length + ", " + count.length);
        }
        this.layer = layer;
        this.kvHead = kvHead;
        this.position = position;
        this.mass = mass;
        this.entropy = entropy;
        this.count = count;
        this.vectorSource = vectors;
        this.querySource = queries;
    }

    public int layer() {
        return layer;
    }

    public int kvHead() {
        return kvHead;
    }

    /** Number of cells. */
    public int size() {
        return position.length;
    }

    /** Token position of each cell, ascending. */
    public int[] position() {
        return position;
    }

    /** The newest position; its cell is the last. */
    public int newest() {
        return position[position.length - 1];
    }

    /** Attention each cell received, summed over queries and the KV head's query heads. */
    public float[] mass() {
        return mass;
    }

    /** Attention a cell received per position since its own: mass / (newest - position + 1). */
    public double rate(int i) {
        return mass[i] / (newest() - position[i] + 1.0);
    }

    /** Normalised Shannon entropy H / log n of each token's own attention row, mean of the KV head's query heads. */
    public float[] entropy() {
        return entropy;
    }

    /** Tokens merged into each cell. */
    public int[] count() {
        return count;
    }

    /** Keys as cached, [size][dimension] in one array; a fresh copy at the first call. */
    public float[] keys() {
        return vectors().keys();
    }

    /** Values, [size][dimension] in one array. */
    public float[] values() {
        return vectors().values();
    }

    /** |K_i - K_{i+1}|^2 for each cell but the last. */
    public float[] keySteps() {
        return vectors().keySteps();
    }

    /** |V_i - V_{i+1}|^2 for each cell but the last. */
    public float[] valueSteps() {
        return vectors().valueSteps();
    }

    /** Mean and second moment of the queries that the head has seen of late, in the frame of the cached keys. */
    public Observer.QueryMoments queries() {
        if (queries == null) {
            queries = querySource.get();
        }
        return queries;
    }

    private Observer.Vectors vectors() {
        if (vectors == null) {
            vectors = vectorSource.get();
        }
        return vectors;
    }
}
