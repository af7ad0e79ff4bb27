package dev.kvmerge.kernels;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_block_stats;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.NativeLibrary;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
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
     * @param massSample of all a block's captured queries, the mass is of about so many, evenly spaced, each for those
     *     between; 0 for all
     * @param queries mean and second moment of the queries; a folded bias needs them and gets them
     * @param queryHeads the same of each query head, before their rotation; on the CPU, wherever the layers are
     * @param bias how merged cells keep their members' mass
     * @param queryDecay what is left of the query moments after a block of 128 tokens, 0..1; after one of n tokens
     *     queryDecay^(n / 128)
     * @param ridge regularisation of the fold direction, positive
     * @param backend where the model's layers live
     * @param threads most threads that rewriting cells uses
     * @param observation whether queries are captured or the graph is stopped
     */
    public record Options(
            boolean mass,
            boolean entropy,
            double massPower,
            int massQueries,
            int massSample,
            boolean queries,
            boolean queryHeads,
            Bias bias,
            double queryDecay,
            double ridge,
            Backend backend,
            int threads,
            Observation observation) {
        private static final double QUERY_DECAY = 0.7;
        private static final double RIDGE = 0.05;

        /** Whether queries are captured, where nothing stands against it. */
        public boolean captures(boolean flashAttention) {
            return (mass || entropy || queries || queryHeads || bias == Bias.FOLDED)
                    && bias != Bias.EXACT
                    && observation.captures(flashAttention, backend == Backend.CPU);
        }

        public Options {
            Objects.requireNonNull(observation, "observation");
            if (!(massPower == 1 || massPower == 1.5 || massPower == 2) || massQueries < 0 || massSample < 0) {
                throw new KvmergeException.Usage(
                        "the mass power is 1, 1.5 or 2, its queries and its sample not negative: " + massPower + ", "
                                + massQueries + ", " + massSample);
            }
            if (!(queryDecay >= 0 && queryDecay <= 1) || !(ridge > 0 && Double.isFinite(ridge))) {
                throw new KvmergeException.Usage(
                        "the decay of the queries must be 0..1 and the ridge positive: " + queryDecay + ", " + ridge);
            }
        }

        /** The decay and ridge that were measured best. */
        public static Options of(boolean mass, boolean entropy, Bias bias, int threads) {
            return new Options(
                    mass,
                    entropy,
                    1,
                    0,
                    0,
                    false,
                    false,
                    bias,
                    QUERY_DECAY,
                    RIDGE,
                    Backend.CPU,
                    threads,
                    Observation.AUTO);
        }

        public Options withMassPower(double power) {
            return new Options(
                    mass,
                    entropy,
                    power,
                    massQueries,
                    massSample,
                    queries,
                    queryHeads,
                    bias,
                    queryDecay,
                    ridge,
                    backend,
                    threads,
                    observation);
        }

        public Options withBackend(Backend where) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    massSample,
                    queries,
                    queryHeads,
                    bias,
                    queryDecay,
                    ridge,
                    where,
                    threads,
                    observation);
        }

        public Options withMassQueries(int newest) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    newest,
                    massSample,
                    queries,
                    queryHeads,
                    bias,
                    queryDecay,
                    ridge,
                    backend,
                    threads,
                    observation);
        }

        public Options withMassSample(int most) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    most,
                    queries,
                    queryHeads,
                    bias,
                    queryDecay,
                    ridge,
                    backend,
                    threads,
                    observation);
        }

        public Options withQueries(boolean observed) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    massSample,
                    observed,
                    queryHeads,
                    bias,
                    queryDecay,
                    ridge,
                    backend,
                    threads,
                    observation);
        }

        public Options withQueryHeads(boolean observed) {
            return new Options(
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    massSample,
                    queries,
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
                    mass,
                    entropy,
                    massPower,
                    massQueries,
                    massSample,
                    queries,
                    queryHeads,
                    bias,
                    queryDecay,
                    ridge,
                    backend,
                    threads,
                    how);
        }
    }

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
    private final CellMemory memory;

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
        memory = new CellMemory(handle, shape, cells, guard);
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
        this.memory = new CellMemory(handle, shape, cells, guard);
        this.callback = group.callback();
    }

    private static MemorySegment create(Shape shape, int cells, int block, Options options) {
        try (Arena local = Arena.ofConfined()) {
            MemorySegment out = local.allocate(ValueLayout.ADDRESS);
            Kvmerge.check(
                    Kvmerge_h.kvmerge_observer_create(ObserverParams.of(local, shape, cells, block, options), out));
            return out.get(ValueLayout.ADDRESS, 0);
        }
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
        return memory.info();
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
        return memory.queryMoments(layer, kvHead, info);
    }

    /**
     * Reads the moments of each query head of a layer and KV head.
     *
     * @param next position of the next token, for llama.cpp
     * @throws KvmergeException if query heads are not observed
     */
    public QueryHeads queryHeads(int layer, int kvHead, int next, CacheInfo info) {
        return memory.queryHeads(layer, kvHead, next, info);
    }

    /** How a layer's cached keys are rotated. */
    public KeyRotation keyRotation(int layer, CacheInfo info) {
        return memory.keyRotation(layer, info);
    }

    /**
     * Cells of one layer and KV head, as they are when they are asked for.
     *
     * @param which cells, in position order
     * @param buffer where arrays are read into
     */
    public Cells cells(int layer, int kvHead, int[] which, CacheInfo info, Supplier<CellVectors.Buffer> buffer) {
        return memory.cells(layer, kvHead, which, info, buffer);
    }

    /** Reads cells of one layer and KV head. */
    public CellVectors readCells(int layer, int kvHead, int[] which, CacheInfo info, CellVectors.Buffer buffer) {
        return memory.read(layer, kvHead, which, info, buffer);
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
        return memory.project(layer, kvHead, which, positions, weight, info);
    }

    /**
     * Writes the values of cells of one layer and KV head, rounding to the cells' type. values: [which][valueDimension]
     * in one array.
     */
    public void writeValues(int layer, int kvHead, int[] which, float[] values, CacheInfo info) {
        memory.write(layer, kvHead, which, null, values, info);
    }

    /** Writes the keys and values of cells of one layer and KV head, rounding to the cells' type. */
    public void writeCells(int layer, int kvHead, int[] which, CellVectors vectors, CacheInfo info) {
        memory.write(layer, kvHead, which, vectors.keys(), vectors.values(), info);
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
        memory.apply(targets, weights, valueWeights, positions, destinations, newPositions, pivotFrame);
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
