package dev.kvmerge.kernels;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_block_stats;
import dev.kvmerge.bindings.kvmerge_cache_column;
import dev.kvmerge.bindings.kvmerge_cache_params;
import dev.kvmerge.bindings.kvmerge_cache_used;
import dev.kvmerge.bindings.kvmerge_llama;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

/**
 * The native table of what each cell of one sequence holds (kvmerge_cache in kvmerge.h): it takes account of what was
 * decoded, takes plans, has them carried out, and saves and restores all of it. A pair is a layer and KV head, layer *
 * kvHeads + kvHead. One thread at a time, but for {@link #columns}, {@link #fates}, {@link #usage} and {@link #stage}
 * of different pairs: others get an {@link IllegalStateException}. Close it before its context and observer.
 */
public final class CellTable implements AutoCloseable {
    /**
     * How the table is kept.
     *
     * @param cells that stay after each compression; 0: all
     * @param block most tokens between two compressions
     * @param promptBlock the same of a prompt
     * @param positionRange most positions used; 0 for no limit
     * @param keepsNewest whether the cells that stay are those of the newest positions, for a model with sliding
     *     windows
     * @param pivotFrame whether keys are rotated to their pivot's position before they are averaged
     * @param recordsFates whether it remembers what became of each token
     * @param massDecay what 128 tokens leave of a cell's mass, 0..1
     * @param merging what {@link #plan} decides with; null where nobody calls it
     * @param calibration [pairs][6 + keyDimension], weights of the attention to come; null: none
     */
    public record Options(
            int cells,
            int block,
            int promptBlock,
            int positionRange,
            boolean keepsNewest,
            boolean pivotFrame,
            boolean recordsFates,
            double massDecay,
            EntropyMerging merging,
            float[][] calibration) {}

    private static final int CALIBRATION_SCALARS = 6; // before the key's weights

    private final Observer observer;
    private final Context context;
    private final Shape shape;
    private final MemorySegment handle;
    private final Guard guard = new Guard("the cell table");

    /**
     * Makes the table of an empty sequence.
     *
     * @throws KvmergeException if the options do not go together, or with the context
     */
    public CellTable(Observer observer, Context context, int sequence, Options options) {
        this.observer = observer;
        this.context = context;
        this.shape = observer.shape();
        try (Arena local = Arena.ofConfined()) {
            MemorySegment out = local.allocate(ValueLayout.ADDRESS);
            MemorySegment params = params(local, options, shape.pairs());
            context.alone(
                    false,
                    address -> Kvmerge.check(
                            Kvmerge_h.kvmerge_cache_create(params, observer.handle(), address, sequence, out)));
            handle = out.get(ValueLayout.ADDRESS, 0);
        }
    }

    private static MemorySegment params(Arena local, Options options, int pairs) {
        MemorySegment params = kvmerge_cache_params.allocate(local);
        Kvmerge.check(Kvmerge_h.kvmerge_cache_defaults(params));
        kvmerge_cache_params.n_cells(params, options.cells);
        kvmerge_cache_params.n_block(params, options.block);
        kvmerge_cache_params.n_prompt_block(params, options.promptBlock);
        kvmerge_cache_params.position_range(params, options.positionRange);
        kvmerge_cache_params.keep_newest(params, options.keepsNewest ? 1 : 0);
        kvmerge_cache_params.pivot_frame(params, options.pivotFrame ? 1 : 0);
        kvmerge_cache_params.record_fates(params, options.recordsFates ? 1 : 0);
        kvmerge_cache_params.mass_decay(params, options.massDecay);
        if (options.merging != null) {
            kvmerge_cache_params.sinks(params, options.merging.sinks());
            kvmerge_cache_params.recent_share(params, options.merging.recentShare());
            kvmerge_cache_params.largest_group(params, options.merging.largestGroup());
            kvmerge_cache_params.key_cost(params, options.merging.keyCost());
        }
        if (options.calibration != null) {
            int row = options.calibration.length == 0 ? 0 : options.calibration[0].length;
            if (options.calibration.length != pairs
                    || row <= CALIBRATION_SCALARS
                    || Arrays.stream(options.calibration).anyMatch(weights -> weights.length != row)) {
                throw new IllegalArgumentException("a calibration has a row for each of " + pairs
                        + " pairs, all as long, with " + CALIBRATION_SCALARS + " weights before the key's");
            }
            MemorySegment weights = local.allocate(ValueLayout.JAVA_FLOAT, (long) options.calibration.length * row);
            for (int pair = 0; pair < options.calibration.length; pair++) {
                MemorySegment.copy(options.calibration[pair], 0, weights, ValueLayout.JAVA_FLOAT, 4L * pair * row, row);
            }
            kvmerge_cache_params.calibration(params, weights);
            kvmerge_cache_params.calibration_dim(params, row - CALIBRATION_SCALARS);
        }
        MemorySegment llama = kvmerge_cache_params.llama(params);
        kvmerge_llama.decode(llama, Kvmerge.symbol("llama_decode"));
        kvmerge_llama.synchronize(llama, Kvmerge.symbol("llama_synchronize"));
        kvmerge_llama.n_ctx_seq(llama, Kvmerge.symbol("llama_n_ctx_seq"));
        kvmerge_llama.n_seq_max(llama, Kvmerge.symbol("llama_n_seq_max"));
        kvmerge_llama.n_batch(llama, Kvmerge.symbol("llama_n_batch"));
        kvmerge_llama.get_logits_ith(llama, Kvmerge.symbol("llama_get_logits_ith"));
        kvmerge_llama.get_memory(llama, Kvmerge.symbol("llama_get_memory"));
        kvmerge_llama.memory_seq_rm(llama, Kvmerge.symbol("llama_memory_seq_rm"));
        kvmerge_llama.memory_seq_pos_max(llama, Kvmerge.symbol("llama_memory_seq_pos_max"));
        kvmerge_llama.state_seq_get_size(llama, Kvmerge.symbol("llama_state_seq_get_size"));
        kvmerge_llama.state_seq_get_data(llama, Kvmerge.symbol("llama_state_seq_get_data"));
        kvmerge_llama.state_seq_set_data(llama, Kvmerge.symbol("llama_state_seq_set_data"));
        return params;
    }

    /**
     * Takes tokens that were decoded since the observer began a block into the table.
     *
     * @return nanoseconds spent observing them
     * @throws KvmergeException if the observer saw something that cannot be; nothing changes then
     */
    public long take(int tokens) {
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = observer.guard().exclusive();
                Arena local = Arena.ofConfined()) {
            MemorySegment stats = kvmerge_block_stats.allocate(local);
            Kvmerge.check(Kvmerge_h.kvmerge_cache_take(handle, tokens, stats));
            return kvmerge_block_stats.observe_nanos(stats);
        }
    }

    /**
     * How far the table is.
     *
     * @param tokens taken into it
     * @param cells in use
     * @param pinned of them
     * @param position of the next token, for llama.cpp
     * @param over whether there are more cells than are to stay
     * @param broken whether rewriting cells failed half-way
     * @param bytes of native memory, devices' too, for the table, plans and what the observer has, as of the last block
     */
    public record Usage(int tokens, int cells, int pinned, int position, boolean over, boolean broken, long bytes) {
        /** The same with memory that the native library does not know of. */
        public Usage withMore(long own) {
            return new Usage(tokens, cells, pinned, position, over, broken, bytes + own);
        }
    }

    /** Alone, on the context too. */
    private void alone(boolean endsLogits, Runnable body) {
        try (Guard.Use _ = guard.exclusive()) {
            context.alone(endsLogits, _ -> body.run());
        }
    }

    /** How far the table is. */
    public Usage usage() {
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment used = kvmerge_cache_used.allocate(local);
            Kvmerge.check(Kvmerge_h.kvmerge_cache_usage(handle, used));
            return new Usage(
                    kvmerge_cache_used.n_tokens(used),
                    kvmerge_cache_used.n_used(used),
                    kvmerge_cache_used.n_pinned(used),
                    kvmerge_cache_used.position(used),
                    kvmerge_cache_used.over(used) != 0,
                    kvmerge_cache_used.broken(used) != 0,
                    kvmerge_cache_used.bytes(used));
        }
    }

    /**
     * What is known of a pair's cells, in position order: copies.
     *
     * @param cell its number
     * @param position of its token in the text
     * @param frame the position whose rotation its key carries
     * @param mass attention received, decayed
     * @param exposure queries that could have given it some, decayed
     * @param entropy of the token's own attention row
     * @param count tokens merged into it
     * @param prior what the calibration knows of the token itself
     */
    public record Columns(
            int[] cell,
            int[] position,
            int[] frame,
            float[] mass,
            float[] exposure,
            float[] entropy,
            int[] count,
            float[] prior) {}

    /** A pair's cells. whole: the pinned ones too, which plans do not see. */
    public Columns columns(int pair, boolean whole) {
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            MemorySegment of = kvmerge_cache_column.allocate(local);
            Kvmerge.check(Kvmerge_h.kvmerge_cache_columns(handle, pair / shape.kvHeads(), pair % shape.kvHeads(), of));
            int first = whole ? 0 : kvmerge_cache_column.n_pinned(of);
            int n = kvmerge_cache_column.n(of);
            return new Columns(
                    ints(kvmerge_cache_column.cell(of), first, n),
                    ints(kvmerge_cache_column.position(of), first, n),
                    ints(kvmerge_cache_column.frame(of), first, n),
                    floats(kvmerge_cache_column.mass(of), first, n),
                    floats(kvmerge_cache_column.exposure(of), first, n),
                    floats(kvmerge_cache_column.entropy(of), first, n),
                    ints(kvmerge_cache_column.count(of), first, n),
                    floats(kvmerge_cache_column.prior(of), first, n));
        }
    }

    private static MemorySegment rows(MemorySegment column, int first, int n) {
        return column.reinterpret(4L * n).asSlice(4L * first);
    }

    private static int[] ints(MemorySegment column, int first, int n) {
        return rows(column, first, n).toArray(ValueLayout.JAVA_INT);
    }

    private static float[] floats(MemorySegment column, int first, int n) {
        return rows(column, first, n).toArray(ValueLayout.JAVA_FLOAT);
    }

    /**
     * Takes a pair's plan, by the order of {@link #columns} without the pinned cells.
     *
     * @param target of each cell, the pivot that it goes to, itself where it stays, or -1 where it is dropped
     * @param weight of each cell in its group
     * @param valueWeight the same for the values; null: as weight
     * @throws KvmergeException naming the layer and KV head of a plan that breaks the rules
     */
    public void stage(int pair, int[] target, float[] weight, float[] valueWeight) {
        if (weight.length != target.length || valueWeight != null && valueWeight.length != target.length) {
            throw new IllegalArgumentException("a plan's targets and weights are not as many");
        }
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            Kvmerge.check(Kvmerge_h.kvmerge_cache_stage(
                    handle,
                    pair / shape.kvHeads(),
                    pair % shape.kvHeads(),
                    target.length,
                    local.allocateFrom(ValueLayout.JAVA_INT, target),
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, weight),
                    valueWeight == null
                            ? MemorySegment.NULL
                            : local.allocateFrom(ValueLayout.JAVA_FLOAT, valueWeight)));
        }
    }

    /** Plans all pairs, as the options' {@link EntropyMerging} says. */
    public void plan() {
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = observer.guard().shared()) {
            Kvmerge.check(Kvmerge_h.kvmerge_cache_plan(handle));
        }
    }

    /**
     * Carries out the plans: rewrites the cells, frees the others and moves the table. A pair's groups come in the
     * order of their pivots.
     *
     * @throws KvmergeException if that cannot be; {@link Usage#broken} says whether it failed half-way
     */
    public void commit() {
        alone(false, () -> Kvmerge.check(Kvmerge_h.kvmerge_cache_commit(handle)));
    }

    /**
     * Pins what is in the table: it is never dropped or merged.
     *
     * @param fewest cells that have to be left to plan with
     * @throws KvmergeException.Usage if there would be fewer
     */
    public void pin(int fewest) {
        try (Guard.Use _ = guard.exclusive()) {
            if (Kvmerge_h.kvmerge_cache_pin(handle, Math.max(2, fewest)) != Kvmerge_h.KVMERGE_OK()) {
                throw new KvmergeException.Usage(
                        Kvmerge_h.kvmerge_last_error().getString(0) + ": pin less, or use more cells (--cells)");
            }
        }
    }

    /** Forgets everything, and frees the sequence's cells. */
    public void clear() {
        alone(true, () -> Kvmerge.check(Kvmerge_h.kvmerge_cache_clear(handle)));
    }

    /**
     * What became of each token, for a pair: its own number where it is kept, that of the token into whose cell it was
     * merged, -1 where it is dropped.
     *
     * @throws KvmergeException if the options do not record it
     */
    public int[] fates(int pair) {
        try (Guard.Use _ = guard.shared();
                Arena local = Arena.ofConfined()) {
            int tokens = usage().tokens();
            MemorySegment fates = local.allocate(ValueLayout.JAVA_INT, Math.max(1, tokens));
            Kvmerge.check(Kvmerge_h.kvmerge_cache_fates(
                    handle, pair / shape.kvHeads(), pair % shape.kvHeads(), 0, tokens, fates));
            return fates.asSlice(0, 4L * tokens).toArray(ValueLayout.JAVA_INT);
        }
    }

    /** The whole state as bytes, in memory of the arena. */
    public MemorySegment save(Arena arena) {
        MemorySegment size = arena.allocate(ValueLayout.JAVA_LONG);
        MemorySegment[] state = new MemorySegment[1];
        alone(false, () -> {
            Kvmerge.check(Kvmerge_h.kvmerge_cache_state_size(handle, size));
            state[0] = arena.allocate(size.get(ValueLayout.JAVA_LONG, 0));
            Kvmerge.check(Kvmerge_h.kvmerge_cache_save(handle, state[0], state[0].byteSize()));
        });
        return state[0];
    }

    /** Bytes at the start of a state that say how long it is. */
    public static final int STATE_START = 24;

    /**
     * The bytes of a state, by its first {@link #STATE_START}.
     *
     * @throws KvmergeException if it is none
     */
    public static long stateBytes(MemorySegment start) {
        long bytes = start.get(ValueLayout.JAVA_LONG, 16);
        byte[] magic = start.asSlice(0, 8).toArray(ValueLayout.JAVA_BYTE);
        if (!new String(magic, java.nio.charset.StandardCharsets.ISO_8859_1).equals("kvmstate")
                || bytes < STATE_START) {
            throw new KvmergeException("these bytes are no state of a compressed context");
        }
        return bytes;
    }

    /**
     * Takes over a state, in place of what there is.
     *
     * @throws KvmergeException if it is damaged, or of another kind of table; nothing changes then
     */
    public void restore(MemorySegment state) {
        alone(true, () -> Kvmerge.check(Kvmerge_h.kvmerge_cache_restore(handle, state, state.byteSize())));
    }

    @Override
    public void close() {
        guard.close(() -> Kvmerge.check(Kvmerge_h.kvmerge_cache_free(handle)));
    }
}
