package dev.kvmerge.attention;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Cells;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.kernels.QueryHeads;
import java.util.function.Supplier;

/**
 * What is known of the cells of one layer and KV head, in position order: what a strategy decides from. Index i runs
 * over cells in use, oldest position first; it is not llama.cpp's cell number. The arrays are the strategy's to read,
 * not to keep. Reading a statistic that was not observed is a {@link KvmergeException} that names it and the remedy.
 */
public final class CellStats {
    private final int layer;
    private final int kvHead;
    private final int[] position;
    private final float[] mass;
    private final float[] exposure;
    private final float[] entropy;
    private final int[] count;
    private final float[] prior;
    private final Cells cells;
    private final Supplier<Observer.QueryMoments> querySource;
    private Observer.QueryMoments queries;
    private Supplier<QueryHeads> headSource;
    private QueryHeads heads;

    /**
     * Cells made by hand or read from a cache.
     *
     * @param position [n], ascending; of a merged cell, its pivot's
     * @param mass [n], attention received, decayed as the planner asks; null when not observed
     * @param exposure [n], queries that could attend to the cell, decayed in the same way, positive
     * @param entropy [n], of the token's own attention row, 0..1; null when not observed
     * @param count [n], tokens merged into the cell, 1 for a plain one
     * @param prior [n], the log of the attention that is to be expected of the token itself, by a {@link Calibration};
     *     null without
     * @param cells their keys and values; null if nobody asks for them
     * @param queries reads the query moments when they are first asked for; null when not observed
     */
    public CellStats(
            int layer,
            int kvHead,
            int[] position,
            float[] mass,
            float[] exposure,
            float[] entropy,
            int[] count,
            float[] prior,
            Cells cells,
            Supplier<Observer.QueryMoments> queries) {
        int n = position.length;
        if (n == 0
                || exposure.length != n
                || count.length != n
                || (mass != null && mass.length != n)
                || (entropy != null && entropy.length != n)
                || (prior != null && prior.length != n)) {
            throw new IllegalArgumentException("statistics of different numbers of cells: there are " + n);
        }
        this.layer = layer;
        this.kvHead = kvHead;
        this.position = position;
        this.mass = mass;
        this.exposure = exposure;
        this.entropy = entropy;
        this.count = count;
        this.prior = prior;
        this.cells = cells;
        this.querySource = queries;
    }

    /**
     * The same cells, of which this is known too.
     *
     * @param source reads the moments of each query head when they are first asked for; null when not observed
     */
    public CellStats withQueryHeads(Supplier<QueryHeads> source) {
        CellStats same =
                new CellStats(layer, kvHead, position, mass, exposure, entropy, count, prior, cells, querySource);
        same.headSource = source;
        return same;
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
        return declared(mass, "the mass", "withMass()");
    }

    /**
     * Attention a cell receives from a query that can see it: mass over exposure. Both are decayed alike, so that this
     * is a mean over queries, the late ones weighing more, and old cells are not put at a disadvantage.
     */
    public double rate(int i) {
        return mass()[i] / exposure[i];
    }

    /** Queries that could attend to each cell, decayed as the mass is; 1 and more. */
    public float[] exposure() {
        return exposure;
    }

    /** Normalised Shannon entropy H / log n of each token's own attention row, mean of the KV head's query heads. */
    public float[] entropy() {
        return declared(entropy, "the entropy", "withEntropy()");
    }

    /** Tokens merged into each cell. */
    public int[] count() {
        return count;
    }

    /** What a {@link Calibration} knows of each token itself; of a merged cell, the weighted mean. */
    public float[] prior() {
        return declared(prior, "what a calibration foresees", "withCalibration(...)");
    }

    /** Keys as cached, [size][dimension] in one array; a copy made at the first call. */
    public float[] keys() {
        return cells().keys();
    }

    /** Values, [size][dimension] in one array. */
    public float[] values() {
        return cells().values();
    }

    /** Mean and second moment of the queries that the head has seen of late, in the frame of the cached keys. */
    public Observer.QueryMoments queries() {
        if (queries == null) {
            queries = declared(querySource, "the queries", "withQueries()").get();
        }
        return queries;
    }

    /** What each of the KV head's query heads has asked for of late, before the rotation of its queries. */
    public QueryHeads queryHeads() {
        if (heads == null) {
            heads = declared(headSource, "each query head", "withQueryHeads()").get();
        }
        return heads;
    }

    /** Plans over keys and values where they lie; as {@link Cells#groups}. */
    public int[] groups(double[] rate, int first, int end, int operations, int largestGroup, double keyCost) {
        return cells().groups(rate, first, end, operations, largestGroup, keyCost);
    }

    private Cells cells() {
        if (cells == null) {
            throw new IllegalStateException("these statistics came without keys and values");
        }
        return cells;
    }

    private static <T> T declared(T statistic, String what, String remedy) {
        if (statistic == null) {
            throw new KvmergeException(
                    what + " was not observed: the planner's needs() have to declare it, with Needs." + remedy);
        }
        return statistic;
    }
}
