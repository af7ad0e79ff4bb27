package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_cache_info;
import dev.kvmerge.bindings.kvmerge_key_rotation;
import dev.kvmerge.bindings.kvmerge_moves;
import dev.kvmerge.kernels.Observer.CacheInfo;
import dev.kvmerge.kernels.Observer.Projection;
import dev.kvmerge.kernels.Observer.QueryMoments;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Supplier;

/** The cells that an observer knows of, where they lie: what {@link Observer} promises of reading and writing them. */
final class CellMemory {
    private final MemorySegment handle; // the observer's
    private final Shape shape;
    private final int cells;
    private final Guard guard; // the observer's
    private volatile CacheInfo known;

    CellMemory(MemorySegment handle, Shape shape, int cells, Guard guard) {
        this.handle = handle;
        this.shape = shape;
        this.cells = cells;
        this.guard = guard;
    }

    CacheInfo info() {
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment info = kvmerge_cache_info.allocate(local);
            Kvmerge.check(Kvmerge_h.kvmerge_observer_cache_info(handle, info));
            known = new CacheInfo(
                    kvmerge_cache_info.n_cells(info),
                    kvmerge_cache_info.head_dim_k(info),
                    kvmerge_cache_info.head_dim_v(info),
                    kvmerge_cache_info.v_transposed(info) != 0,
                    kvmerge_cache_info.bytes(info),
                    kvmerge_cache_info.type_k(info).getString(0),
                    kvmerge_cache_info.type_v(info).getString(0),
                    kvmerge_cache_info.device(info).getString(0));
            return known;
        }
    }

    /** Refuses what was said of another cache, whose vectors may be shorter than the memory that they are read into. */
    private void check(CacheInfo info) {
        CacheInfo own = known;
        if (own == null) {
            own = info();
        }
        if (!own.equals(info)) {
            throw new IllegalArgumentException("the cache info is another observer's: " + info + " where it is " + own);
        }
    }

    QueryMoments queryMoments(int layer, int kvHead, CacheInfo info) {
        check(info);
        int d = info.keyDimension();
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment mean = local.allocate(ValueLayout.JAVA_FLOAT, d);
            MemorySegment second = local.allocate(ValueLayout.JAVA_FLOAT, (long) d * d);
            Kvmerge.check(Kvmerge_h.kvmerge_query_moments(handle, layer, kvHead, mean, second));
            return new QueryMoments(mean.toArray(ValueLayout.JAVA_FLOAT), second.toArray(ValueLayout.JAVA_FLOAT));
        }
    }

    QueryHeads queryHeads(int layer, int kvHead, int next, CacheInfo info) {
        check(info);
        int d = info.keyDimension();
        int group = shape.heads() / shape.kvHeads();
        List<QueryMoments> heads = new ArrayList<>();
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment mean = local.allocate(ValueLayout.JAVA_FLOAT, d);
            MemorySegment second = local.allocate(ValueLayout.JAVA_FLOAT, (long) d * d);
            for (int head = kvHead * group; head < (kvHead + 1) * group; head++) {
                Kvmerge.check(Kvmerge_h.kvmerge_query_head_moments(handle, layer, head, mean, second));
                heads.add(
                        new QueryMoments(mean.toArray(ValueLayout.JAVA_FLOAT), second.toArray(ValueLayout.JAVA_FLOAT)));
            }
        }
        return new QueryHeads(heads, keyRotation(layer, info), next);
    }

    KeyRotation keyRotation(int layer, CacheInfo info) {
        check(info);
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment out = kvmerge_key_rotation.allocate(local);
            MemorySegment frequency = local.allocate(ValueLayout.JAVA_DOUBLE, info.keyDimension() / 2 + 1);
            Kvmerge.check(Kvmerge_h.kvmerge_rotation(handle, layer, out, frequency));
            int pairs = kvmerge_key_rotation.n_rot(out) / 2;
            return new KeyRotation(
                    frequency.asSlice(0, 8L * pairs).toArray(ValueLayout.JAVA_DOUBLE),
                    kvmerge_key_rotation.neox(out) != 0,
                    kvmerge_key_rotation.hadamard(out));
        }
    }

    Cells cells(int layer, int kvHead, int[] which, CacheInfo info, Supplier<CellVectors.Buffer> buffer) {
        return new Cells() {
            private CellVectors vectors;

            private CellVectors vectors() {
                if (vectors == null) {
                    vectors = CellMemory.this.read(layer, kvHead, which, info, buffer.get());
                }
                return vectors;
            }

            @Override
            public float[] keys() {
                return vectors().keys();
            }

            @Override
            public float[] values() {
                return vectors().values();
            }

            @Override
            public int[] groups(double[] rate, int first, int end, int operations, int largestGroup, double keyCost) {
                Planning planning = (local, params, group) -> Kvmerge_h.kvmerge_plan_cells(
                        handle,
                        layer,
                        kvHead,
                        local.allocateFrom(ValueLayout.JAVA_INT, which),
                        params,
                        group,
                        MemorySegment.NULL);
                try (Guard.Use _ = guard.shared()) {
                    return planning.groups(which.length, rate, first, end, operations, largestGroup, keyCost);
                }
            }
        };
    }

    CellVectors read(int layer, int kvHead, int[] which, CacheInfo info, CellVectors.Buffer buffer) {
        check(info);
        try (Guard.Use _ = guard.shared()) {
            return buffer.read(
                    which,
                    info,
                    (index, keys, values) -> Kvmerge.check(
                            Kvmerge_h.kvmerge_read_cells(handle, layer, kvHead, index, which.length, keys, values)));
        }
    }

    Projection project(int layer, int kvHead, int[] which, int[] positions, float[] weight, CacheInfo info) {
        check(info);
        if (positions.length != which.length || weight.length != info.keyDimension()) {
            throw new IllegalArgumentException(positions.length + " positions and " + weight.length + " weights of "
                    + which.length + " cells with keys of " + info.keyDimension());
        }
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment product = local.allocate(ValueLayout.JAVA_FLOAT, which.length);
            MemorySegment length = local.allocate(ValueLayout.JAVA_FLOAT, which.length);
            Kvmerge.check(Kvmerge_h.kvmerge_project_cells(
                    handle,
                    layer,
                    kvHead,
                    local.allocateFrom(ValueLayout.JAVA_INT, which),
                    local.allocateFrom(ValueLayout.JAVA_INT, positions),
                    which.length,
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, weight),
                    product,
                    length));
            return new Projection(product.toArray(ValueLayout.JAVA_FLOAT), length.toArray(ValueLayout.JAVA_FLOAT));
        }
    }

    /** keys: null to leave them as they are. */
    void write(int layer, int kvHead, int[] which, float[] keys, float[] values, CacheInfo info) {
        check(info);
        if (values.length != (long) which.length * info.valueDimension()
                || keys != null && keys.length != (long) which.length * info.keyDimension()) {
            throw new IllegalArgumentException("keys or values of another shape than " + which.length + " cells");
        }
        try (Guard.Use _ = guard.exclusive();
                Arena local = Arena.ofConfined()) {
            Kvmerge.check(Kvmerge_h.kvmerge_write_cells(
                    handle,
                    layer,
                    kvHead,
                    local.allocateFrom(ValueLayout.JAVA_INT, which),
                    which.length,
                    floats(local, keys),
                    floats(local, values)));
        }
    }

    void apply(
            int[] targets,
            float[] weights,
            float[] valueWeights,
            int[] positions,
            int[] destinations,
            int[] newPositions,
            boolean pivotFrame) {
        int entries = shape.pairs() * cells;
        if (targets.length != entries
                || weights.length != entries
                || positions.length != entries
                || destinations.length != entries
                || (valueWeights != null && valueWeights.length != entries)
                || (newPositions != null && newPositions.length != entries)) {
            throw new IllegalArgumentException("a plan of another shape than the cache");
        }
        try (Guard.Use _ = guard.exclusive();
                Arena local = Arena.ofConfined()) {
            MemorySegment moves = kvmerge_moves.allocate(local);
            kvmerge_moves.target(moves, local.allocateFrom(ValueLayout.JAVA_INT, targets));
            kvmerge_moves.weight(moves, floats(local, weights));
            kvmerge_moves.value_weight(moves, floats(local, valueWeights));
            kvmerge_moves.position(moves, local.allocateFrom(ValueLayout.JAVA_INT, positions));
            kvmerge_moves.dest(moves, local.allocateFrom(ValueLayout.JAVA_INT, destinations));
            kvmerge_moves.new_position(
                    moves,
                    newPositions == null ? MemorySegment.NULL : local.allocateFrom(ValueLayout.JAVA_INT, newPositions));
            kvmerge_moves.pivot_frame(moves, pivotFrame ? 1 : 0);
            Kvmerge.check(Kvmerge_h.kvmerge_apply(handle, moves));
        }
    }

    /** Null becomes native null. */
    private static MemorySegment floats(Arena arena, float[] values) {
        return values == null ? MemorySegment.NULL : arena.allocateFrom(ValueLayout.JAVA_FLOAT, values);
    }
}
