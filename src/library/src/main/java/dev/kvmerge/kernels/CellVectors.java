package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_groups_params;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Keys and values that were read or made, as F32 in native memory. Read into a {@link Buffer}, they are overwritten by
 * the next read into it.
 */
public final class CellVectors implements Cells {
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

    @Override
    public float[] keys() {
        if (!keysCopied) {
            MemorySegment.copy(keySegment, ValueLayout.JAVA_FLOAT, 0, keys, 0, keys.length);
            keysCopied = true;
        }
        return keys;
    }

    @Override
    public float[] values() {
        if (!valuesCopied) {
            MemorySegment.copy(valueSegment, ValueLayout.JAVA_FLOAT, 0, values, 0, values.length);
            valuesCopied = true;
        }
        return values;
    }

    @Override
    public int[] groups(double[] rate, int first, int end, int operations, int largestGroup, double keyCost) {
        Planning planning = (local, params, group) -> {
            kvmerge_groups_params.head_dim_k(params, keys.length / n);
            kvmerge_groups_params.head_dim_v(params, values.length / n);
            kvmerge_groups_params.keys(params, keySegment);
            kvmerge_groups_params.values(params, valueSegment);
            return Kvmerge_h.kvmerge_plan_groups(params, group, MemorySegment.NULL);
        };
        return planning.groups(n, rate, first, end, operations, largestGroup, keyCost);
    }

    /** Memory to read cells into, over and over. One thread's. */
    public static final class Buffer {
        private MemorySegment index = MemorySegment.NULL;
        private CellVectors vectors;

        /** Without memory until the first cells are read. */
        public Buffer() {}

        /** Bytes that it keeps, native and on the heap. */
        public long bytes() {
            CellVectors now = vectors;
            return now == null ? 0 : Integer.BYTES * now.n + 2L * Float.BYTES * (now.keys.length + now.values.length);
        }

        /** Reads as many cells as fit. */
        CellVectors read(int[] which, Observer.CacheInfo info, Reader reader) {
            int k = Math.multiplyExact(which.length, info.keyDimension());
            int v = Math.multiplyExact(which.length, info.valueDimension());
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
