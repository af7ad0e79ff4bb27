package dev.kvmerge.kernels;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_block_stats;
import dev.kvmerge.bindings.kvmerge_cache_info;
import dev.kvmerge.bindings.kvmerge_ggml;
import dev.kvmerge.bindings.kvmerge_key_rotation;
import dev.kvmerge.bindings.kvmerge_moves;
import dev.kvmerge.bindings.kvmerge_observer_params;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.NativeLibrary;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.util.Objects;
import java.util.function.Supplier;

/**
 * The native observer of one llama.cpp context, or of a sequence of it ({@link ObserverGroup}): hand
 * {@link #callback()} to the context, {@link #begin()} a block, decode it, read {@link #stats()}, {@link #apply} a
 * plan. Close it after its context. One thread at a time, but for {@link #readCells}, {@link #project},
 * {@link #queryMoments} and {@link #cells}, which may run on several; a call that meets one it cannot run beside, a
 * decode among them, or the closed observer, gets an {@link IllegalStateException}.
 */
public final class Observer implements AutoCloseable {
    /**
     * What to look at.
     *
     * @param mass attention received by each cell
     * @param entropy normalised entropy of each attention row
     * @param massPower 1 for attention received; 1.5 or 2 for the sum of that power of it
     * @param massQueries the mass is over so many of the newest queries; 0 for all
     * @param queries mean and second moment of the queries; a folded bias needs them and gets them
     * @param bias how merged cells keep their members' mass
     * @param queryDecay factor on the query moments at each block, 0..1
     * @param ridge regularisation of the fold direction, positive
     * @param backend where the model's layers live
     * @param threads most threads that rewriting cells uses
     * @param observation whether queries are captured or the graph is stopped, with flash attention
     */
    public record Options(
            boolean mass,
            boolean entropy,
            double massPower,
            int massQueries,
            boolean queries,
            Bias bias,
            double queryDecay,
            double ridge,
            Backend backend,
            int threads,
            Observation observation) {
        private static final double QUERY_DECAY = 0.7;
        private static final double RIDGE = 0.05;

        public Options {
            Objects.requireNonNull(observation, "observation");
            if (!(massPower == 1 || massPower == 1.5 || massPower == 2) || massQueries < 0) {
                throw new KvmergeException.Usage(
                        "the mass power is 1, 1.5 or 2 and its window not negative: " + massPower + ", " + massQueries);
            }
            if (!(queryDecay >= 0 && queryDecay <= 1) || !(ridge > 0 && Double.isFinite(ridge))) {
                throw new KvmergeException.Usage(
                        "the decay of the queries must be 0..1 and the ridge positive: " + queryDecay + ", " + ridge);
            }
        }

        /** The decay and ridge that were measured best. */
        public static Options of(boolean mass, boolean entropy, Bias bias, int threads) {
            return new Options(
                    mass, entropy, 1, 0, false, bias, QUERY_DECAY, RIDGE, Backend.CPU, threads, Observation.CAPTURE);
        }

        public Options withMassPower(double power) {
            return new Options(
                    mass, entropy, power, massQueries, queries, bias, queryDecay, ridge, backend, threads, observation);
        }

        public Options withBackend(Backend where) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    queries,
                    bias,
                    queryDecay,
                    ridge,
                    where,
                    threads,
                    observation);
        }

        public Options withMassQueries(int window) {
            return new Options(
                    mass, entropy, massPower, window, queries, bias, queryDecay, ridge, backend, threads, observation);
        }

        public Options withQueries(boolean observed) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    observed,
                    bias,
                    queryDecay,
                    ridge,
                    backend,
                    threads,
                    observation);
        }

        public Options withObservation(Observation how) {
            return new Options(
                    mass, entropy, massPower, massQueries, queries, bias, queryDecay, ridge, backend, threads, how);
        }
    }

    /** Bytes that an entry of a layer, KV head and cell takes here and on the native side, about. */
    public static final int ENTRY_BYTES = 25;

    private final Shape shape;
    private final int cells;
    private final int block;
    private final boolean entropies;
    private final MemorySegment handle;
    private final ContextOptions.EvalCallback callback;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment stats = kvmerge_block_stats.allocate(arena);
    private final Guard guard;
    private final ObserverGroup group; // null: it is alone
    private volatile CacheInfo cacheInfo; // once it is known
    private final Object moments =
            new Object(); // reading query moments adds up those that wait, for all heads of a layer

    /**
     * Makes an observer. llama.cpp must be loaded.
     *
     * @param cells cells of the context to come, after llama.cpp's rounding
     * @param block most tokens between two begins
     */
    public Observer(Shape shape, int cells, int block, Options options) {
        this.shape = shape;
        this.cells = cells;
        this.block = block;
        this.entropies = options.entropy();
        this.guard = new Guard("the observer");
        this.group = null;
        NativeLibrary.require();
        try {
            handle = create(shape, cells, block, options);
        } catch (RuntimeException | Error e) {
            arena.close();
            throw e;
        }
        callback = new ContextOptions.EvalCallback(Kvmerge_h.kvmerge_eval_callback$address(), handle, guard);
    }

    /** Of a group: the native observer is the group's, which frees it. */
    Observer(Shape shape, int cells, int block, Options options, MemorySegment handle, ObserverGroup group) {
        this.shape = shape;
        this.cells = cells;
        this.block = block;
        this.entropies = options.entropy();
        this.handle = handle;
        this.group = group;
        this.guard = group.guard();
        this.callback = group.callback();
    }

    private static MemorySegment create(Shape shape, int cells, int block, Options options) {
        try (Arena local = Arena.ofConfined()) {
            MemorySegment out = local.allocate(ValueLayout.ADDRESS);
            Kvmerge.check(Kvmerge_h.kvmerge_observer_create(params(local, shape, cells, block, options), out));
            return out.get(ValueLayout.ADDRESS, 0);
        }
    }

    /** What the native library makes an observer of. */
    static MemorySegment params(Arena local, Shape shape, int cells, int block, Options options) {
        MemorySegment params = kvmerge_observer_params.allocate(local);
        kvmerge_observer_params.n_layer(params, shape.layers());
        kvmerge_observer_params.layers(
                params,
                local.allocateFrom(
                        ValueLayout.JAVA_INT,
                        shape.layerNumbers().stream()
                                .mapToInt(Integer::intValue)
                                .toArray()));
        kvmerge_observer_params.n_head(params, shape.heads());
        kvmerge_observer_params.n_head_kv(params, shape.kvHeads());
        kvmerge_observer_params.n_cells(params, cells);
        kvmerge_observer_params.n_tokens(params, block);
        kvmerge_observer_params.observe(
                params,
                (options.mass() ? Kvmerge_h.KVMERGE_OBSERVE_MASS() : 0)
                        | (options.entropy() ? Kvmerge_h.KVMERGE_OBSERVE_ENTROPY() : 0)
                        | (options.queries() ? Kvmerge_h.KVMERGE_OBSERVE_QUERIES() : 0)
                        | (options.observation() == Observation.STOP ? Kvmerge_h.KVMERGE_OBSERVE_STOP() : 0));
        kvmerge_observer_params.mass_power(params, (float) options.massPower());
        kvmerge_observer_params.mass_queries(params, options.massQueries());
        kvmerge_observer_params.bias(
                params,
                switch (options.bias()) {
                    case NONE -> Kvmerge_h.KVMERGE_BIAS_NONE();
                    case FOLDED -> Kvmerge_h.KVMERGE_BIAS_FOLDED();
                    case EXACT -> Kvmerge_h.KVMERGE_BIAS_EXACT();
                });
        kvmerge_observer_params.query_decay(params, (float) options.queryDecay());
        kvmerge_observer_params.ridge(params, (float) options.ridge());
        kvmerge_observer_params.device(
                params,
                options.backend() == Backend.CUDA ? Kvmerge_h.KVMERGE_DEVICE_CUDA() : Kvmerge_h.KVMERGE_DEVICE_CPU());
        kvmerge_observer_params.n_threads(params, options.threads());
        MemorySegment entries3 = kvmerge_observer_params.ggml(params);
        kvmerge_ggml.tensor_get(entries3, symbol("ggml_backend_tensor_get"));
        kvmerge_ggml.tensor_set(entries3, symbol("ggml_backend_tensor_set"));
        kvmerge_ggml.buffer_is_host(entries3, symbol("ggml_backend_buffer_is_host"));
        return params;
    }

    /** A function of the llama.cpp that is loaded. */
    static MemorySegment symbol(String name) {
        return SymbolLookup.loaderLookup()
                .find(name)
                .orElseThrow(() -> new KvmergeException("the loaded llama.cpp has no " + name));
    }

    /** What to give to the context. */
    public ContextOptions.EvalCallback callback() {
        if (guard.isClosed()) {
            throw new IllegalStateException("the observer is closed");
        }
        return callback;
    }

    MemorySegment handle() {
        return handle;
    }

    Guard guard() {
        return guard;
    }

    Shape shape() {
        return shape;
    }

    /** Starts a block: forgets the last one's tokens, mass and entropies, decays the query moments. */
    public void begin() {
        try (Guard.Use _ = guard.exclusive()) {
            Kvmerge.check(Kvmerge_h.kvmerge_observer_begin(handle));
        }
    }

    /**
     * After a decode that failed or was aborted, the first since begin: forgets it, as if the block had just begun.
     * Where the graph is stopped, the query moments keep the queries that had come.
     */
    public void forget() {
        try (Guard.Use _ = guard.exclusive()) {
            Kvmerge.check(Kvmerge_h.kvmerge_observer_forget(handle));
        }
    }

    /**
     * What was seen since begin.
     *
     * @param tokenCell the cell of each token of the block
     * @param mass [layer * kvHeads + kvHead][cell], attention received; null when not observed
     * @param entropy [layer][head][token], H(row) / log(visible cells); null when not observed
     * @param layersSeen layers whose attention was observed in full
     * @param nanos time spent observing
     */
    public record Stats(int[] tokenCell, float[] mass, float[] entropy, int layersSeen, long nanos) {}

    /**
     * Reads what was seen.
     *
     * @throws KvmergeException if the graph had something that cannot be read
     */
    public Stats stats() {
        try (Guard.Use _ = guard.exclusive()) {
            Kvmerge.check(Kvmerge_h.kvmerge_observer_stats(handle, stats));
            int n = kvmerge_block_stats.n_tokens(stats);
            int[] tokenCell =
                    kvmerge_block_stats.token_cell(stats).reinterpret(4L * n).toArray(ValueLayout.JAVA_INT);
            float[] mass = floats(kvmerge_block_stats.mass(stats), (long) shape.pairs() * cells);
            float[] entropy = null;
            if (entropies) {
                float[] padded =
                        floats(kvmerge_block_stats.entropy(stats), (long) shape.layers() * shape.heads() * block);
                entropy = new float[shape.layers() * shape.heads() * n];
                for (int row = 0; row < shape.layers() * shape.heads(); row++) {
                    System.arraycopy(padded, row * block, entropy, row * n, n);
                }
            }
            return new Stats(
                    tokenCell,
                    mass,
                    entropy,
                    kvmerge_block_stats.n_layer_seen(stats),
                    kvmerge_block_stats.observe_nanos(stats));
        }
    }

    private static float[] floats(MemorySegment pointer, long n) {
        return pointer.equals(MemorySegment.NULL)
                ? null
                : pointer.reinterpret(4 * n).toArray(ValueLayout.JAVA_FLOAT);
    }

    /**
     * Where the cells lie.
     *
     * @param cells cells allocated
     * @param keyDimension elements a key
     * @param valueDimension elements a value
     * @param valuesTransposed flash attention off
     * @param bytes K and V tensors of all layers of the model, those with sliding windows too
     * @param keyType as "f16"
     * @param valueType as "f16"
     * @param device whose kernels work on them: "CPU" or "CUDA"
     */
    public record CacheInfo(
            int cells,
            int keyDimension,
            int valueDimension,
            boolean valuesTransposed,
            long bytes,
            String keyType,
            String valueType,
            String device) {}

    /**
     * Where the cells lie, as read from the graph.
     *
     * @throws KvmergeException before the first decode, or if a layer has no ordinary KV cache
     */
    public CacheInfo cacheInfo() {
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment info = kvmerge_cache_info.allocate(local);
            Kvmerge.check(Kvmerge_h.kvmerge_observer_cache_info(handle, info));
            CacheInfo read = new CacheInfo(
                    kvmerge_cache_info.n_cells(info),
                    kvmerge_cache_info.head_dim_k(info),
                    kvmerge_cache_info.head_dim_v(info),
                    kvmerge_cache_info.v_transposed(info) != 0,
                    kvmerge_cache_info.bytes(info),
                    kvmerge_cache_info.type_k(info).getString(0),
                    kvmerge_cache_info.type_v(info).getString(0),
                    kvmerge_cache_info.device(info).getString(0));
            cacheInfo = read;
            return read;
        }
    }

    /** Refuses what was said of another cache, whose vectors may be shorter than the memory that they are read into. */
    private void check(CacheInfo info) {
        CacheInfo own = cacheInfo;
        if (own == null) {
            own = cacheInfo();
        }
        if (!own.equals(info)) {
            throw new IllegalArgumentException("the cache info is another observer's: " + info + " where it is " + own);
        }
    }

    /**
     * What the queries of a KV head's query heads look like, decayed block by block, in the frame of the cached keys.
     *
     * @param mean [keyDimension]
     * @param second [keyDimension][keyDimension], E[q q'] in one array
     */
    public record QueryMoments(float[] mean, float[] second) {}

    /**
     * Reads the query moments of a layer and KV head.
     *
     * @throws KvmergeException if queries are not observed
     */
    public QueryMoments queryMoments(int layer, int kvHead, CacheInfo info) {
        check(info);
        int d = info.keyDimension();
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment mean = local.allocate(ValueLayout.JAVA_FLOAT, d);
            MemorySegment second = local.allocate(ValueLayout.JAVA_FLOAT, (long) d * d);
            synchronized (moments) {
                Kvmerge.check(Kvmerge_h.kvmerge_query_moments(handle, layer, kvHead, mean, second));
            }
            return new QueryMoments(mean.toArray(ValueLayout.JAVA_FLOAT), second.toArray(ValueLayout.JAVA_FLOAT));
        }
    }

    /** How a layer's cached keys are rotated. */
    public KeyRotation keyRotation(int layer, CacheInfo info) {
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

    /**
     * Cells of one layer and KV head, as they are when they are asked for.
     *
     * @param which cells, in position order
     * @param buffer where arrays are read into
     */
    public Cells cells(int layer, int kvHead, int[] which, CacheInfo info, Supplier<CellVectors.Buffer> buffer) {
        return new Cells() {
            private CellVectors vectors;

            private CellVectors vectors() {
                if (vectors == null) {
                    vectors = readCells(layer, kvHead, which, info, buffer.get());
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

    /** Reads cells of one layer and KV head. */
    public CellVectors readCells(int layer, int kvHead, int[] which, CacheInfo info, CellVectors.Buffer buffer) {
        check(info);
        try (Guard.Use _ = guard.shared()) {
            return buffer.read(
                    which,
                    info,
                    (index, keys, values) -> Kvmerge.check(
                            Kvmerge_h.kvmerge_read_cells(handle, layer, kvHead, index, which.length, keys, values)));
        }
    }

    /**
     * What a log-linear model of attention takes from cells themselves.
     *
     * @param products [cells], of a vector and each key as it was before its rotation
     * @param lengths [cells], of the values
     */
    public record Projection(float[] products, float[] lengths) {}

    /**
     * Projects cells of one layer and KV head.
     *
     * @param positions [which], whose rotation each key carries
     * @param weight [keyDimension]
     */
    public Projection project(int layer, int kvHead, int[] which, int[] positions, float[] weight, CacheInfo info) {
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

    /**
     * Writes the values of cells of one layer and KV head, rounding to the cells' type. values: [which][valueDimension]
     * in one array.
     */
    public void writeValues(int layer, int kvHead, int[] which, float[] values, CacheInfo info) {
        check(info);
        if (values.length != (long) which.length * info.valueDimension()) {
            throw new IllegalArgumentException("values of another shape than " + which.length + " cells");
        }
        try (Guard.Use _ = guard.exclusive();
                Arena local = Arena.ofConfined()) {
            Kvmerge.check(Kvmerge_h.kvmerge_write_cells(
                    handle,
                    layer,
                    kvHead,
                    local.allocateFrom(ValueLayout.JAVA_INT, which),
                    which.length,
                    MemorySegment.NULL,
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, values)));
        }
    }

    /** Writes the keys and values of cells of one layer and KV head, rounding to the cells' type. */
    public void writeCells(int layer, int kvHead, int[] which, CellVectors vectors, CacheInfo info) {
        check(info);
        if (vectors.keys().length != (long) which.length * info.keyDimension()
                || vectors.values().length != (long) which.length * info.valueDimension()) {
            throw new IllegalArgumentException("vectors of another shape than " + which.length + " cells");
        }
        try (Guard.Use _ = guard.exclusive();
                Arena local = Arena.ofConfined()) {
            Kvmerge.check(Kvmerge_h.kvmerge_write_cells(
                    handle,
                    layer,
                    kvHead,
                    local.allocateFrom(ValueLayout.JAVA_INT, which),
                    which.length,
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, vectors.keys()),
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, vectors.values())));
        }
    }

    /**
     * Rewrites the cells. valueWeights may be null: as weights; so may newPositions: pivots keep theirs. All arrays are
     * [layer * kvHeads + kvHead][cell]; what they mean is at kvmerge_moves in kvmerge.h.
     *
     * @throws KvmergeException if the plan contradicts itself; nothing is written then
     */
    public void apply(
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
            kvmerge_moves.weight(moves, local.allocateFrom(ValueLayout.JAVA_FLOAT, weights));
            kvmerge_moves.value_weight(
                    moves,
                    valueWeights == null
                            ? MemorySegment.NULL
                            : local.allocateFrom(ValueLayout.JAVA_FLOAT, valueWeights));
            kvmerge_moves.position(moves, local.allocateFrom(ValueLayout.JAVA_INT, positions));
            kvmerge_moves.dest(moves, local.allocateFrom(ValueLayout.JAVA_INT, destinations));
            kvmerge_moves.new_position(
                    moves,
                    newPositions == null ? MemorySegment.NULL : local.allocateFrom(ValueLayout.JAVA_INT, newPositions));
            kvmerge_moves.pivot_frame(moves, pivotFrame ? 1 : 0);
            Kvmerge.check(Kvmerge_h.kvmerge_apply(handle, moves));
        }
    }

    /**
     * Frees the observer; one of a group is freed with its group.
     *
     * @throws IllegalStateException if a context that calls it is still open, or a thread is inside; it stays open then
     */
    @Override
    public void close() {
        if (group != null) {
            return; // with its group
        }
        guard.close(() -> {
            if (callback.inUse()) {
                throw new IllegalStateException("the observer's context is still open: close that first");
            }
            Kvmerge.check(Kvmerge_h.kvmerge_observer_free(handle));
            arena.close();
        });
    }

    /** When the group's native observers are gone. */
    void free() {
        arena.close();
    }
}
