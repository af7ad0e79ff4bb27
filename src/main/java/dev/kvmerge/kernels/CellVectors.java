package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_groups_params;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Keys and values of some cells of a layer and KV head, as F32. They lie in native memory, where planning reads them; who asks for arrays gets
 * copies. Read into a {@link Buffer}, they are overwritten by the next read into it.
 */
public final class CellVectors {
    private final int n;
    private final MemorySegment keySegment;
    private final MemorySegment valueSegment;
    private final float[] keys;
    private final float[] values;
    private boolean keysCopied;
    private boolean valuesCopied;

    private CellVectors(Arena arena, int n, int keyLength, int valueLength) {
        this.n = n;
        keySegment = arena.allocate(ValueLayout.JAVA_FLOAT, keyLength);
        valueSegment = arena.allocate(ValueLayout.JAVA_FLOAT, valueLength);
        keys = new float[keyLength];
        values = new float[valueLength];
    }

    /**
     * Vectors made by hand.
     *
     * @param n cells
     * @param keys [n][keyDimension]
     * @param values [n][valueDimension]
     */
    public static CellVectors of(int n, float[] keys, float[] values) {
        if (n < 1 || keys.length % n != 0 || values.length % n != 0 || keys.length == 0 || values.length == 0) {
            throw new IllegalArgumentException(
                    keys.length + " and " + values.length + " elements are not vectors of " + n + " cells");
        }
        CellVectors vectors = new CellVectors(Arena.ofAuto(), n, keys.length, values.length);
        MemorySegment.copy(keys, 0, vectors.keySegment, ValueLayout.JAVA_FLOAT, 0, keys.length);
        MemorySegment.copy(values, 0, vectors.valueSegment, ValueLayout.JAVA_FLOAT, 0, values.length);
        return vectors;
    }

    /** [n][keyDimension] in one array; the same at every call. */
    public float[] keys() {
        if (!keysCopied) {
            MemorySegment.copy(keySegment, ValueLayout.JAVA_FLOAT, 0, keys, 0, keys.length);
            keysCopied = true;
        }
        return keys;
    }

    /** [n][valueDimension] in one array; the same at every call. */
    public float[] values() {
        if (!valuesCopied) {
            MemorySegment.copy(valueSegment, ValueLayout.JAVA_FLOAT, 0, values, 0, values.length);
            valuesCopied = true;
        }
        return values;
    }

    /**
     * Which of these cells, in position order, to drop and which to merge with their neighbours: the cheapest operation, again and again
     * (kvmerge_plan_groups in kvmerge.h has the prices).
     *
     * @param rate [n], not negative: attention that a query is expected to give each cell
     * @param first cells [first, end) may be touched
     * @param operations 0 to end - first: each leaves a cell less
     * @param largestGroup most cells that become one
     * @param keyCost how much a distance between keys costs
     * @return [n]: the first member of each cell's group, or -1 for a dropped one
     */
    public int[] groups(double[] rate, int first, int end, int operations, int largestGroup, double keyCost) {
        if (rate.length != n) {
            throw new IllegalArgumentException(rate.length + " rates of " + n + " cells");
        }
        try (Arena local = Arena.ofConfined()) {
            MemorySegment params = kvmerge_groups_params.allocate(local);
            kvmerge_groups_params.n(params, n);
            kvmerge_groups_params.head_dim_k(params, keys.length / n);
            kvmerge_groups_params.head_dim_v(params, values.length / n);
            kvmerge_groups_params.first(params, first);
            kvmerge_groups_params.end(params, end);
            kvmerge_groups_params.operations(params, operations);
            kvmerge_groups_params.largest_group(params, largestGroup);
            kvmerge_groups_params.key_cost(params, keyCost);
            kvmerge_groups_params.keys(params, keySegment);
            kvmerge_groups_params.values(params, valueSegment);
            kvmerge_groups_params.rate(params, local.allocateFrom(ValueLayout.JAVA_DOUBLE, rate));
            MemorySegment group = local.allocate(ValueLayout.JAVA_INT, n);
            Kvmerge.check(Kvmerge_h.kvmerge_plan_groups(params, group, MemorySegment.NULL));
            return group.toArray(ValueLayout.JAVA_INT);
        }
    }

    /** Memory to read cells into, over and over. One thread's. */
    public static final class Buffer {
        private MemorySegment index = MemorySegment.NULL;
        private CellVectors vectors;

        /** Reads as many cells as fit. */
        CellVectors read(int[] which, Observer.CacheInfo info, Reader reader) {
            int k = which.length * info.keyDimension();
            int v = which.length * info.valueDimension();
            if (vectors == null || vectors.keys.length != k || vectors.values.length != v) {
                Arena arena = Arena.ofAuto();
                index = arena.allocate(ValueLayout.JAVA_INT, which.length);
                vectors = new CellVectors(arena, which.length, k, v);
            }
            vectors.keysCopied = false;
            vectors.valuesCopied = false;
            MemorySegment.copy(which, 0, index, ValueLayout.JAVA_INT, 0, which.length);
            reader.read(index, vectors.keySegment, vectors.valueSegment);
            return vectors;
        }
    }

    /** Fills native memory. */
    @FunctionalInterface
    interface Reader {
        void read(MemorySegment index, MemorySegment keys, MemorySegment values);
    }
}
