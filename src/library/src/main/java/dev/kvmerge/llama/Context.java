package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.Llama_h;
import dev.kvmerge.bindings.llama_batch;
import dev.kvmerge.bindings.llama_context_params;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.VarHandle;
import java.util.function.Consumer;

/**
 * A llama.cpp context: a model's KV cache and its last logits. One thread at a time: a call that meets another
 * thread's, or the closed context, gets an {@link IllegalStateException}.
 */
public final class Context implements AutoCloseable {
    private static final int ABORTED = 2; // llama_decode's
    private static final VarHandle ABORTS = ValueLayout.JAVA_INT.varHandle();

    private final Model model;
    private final MemorySegment handle;
    private final int cells;
    private final int batch;
    private final int sequences;
    private final int vocabulary;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment tokens;
    private final MemorySegment positions;
    private final MemorySegment sequenceCounts;
    private final MemorySegment sequenceIds;
    private final MemorySegment sequencePointers;
    private final MemorySegment outputs;
    private final MemorySegment nativeBatch;
    private final MemorySegment aborts; // an int that llama.cpp reads at each node of its graph
    private final ContextOptions.EvalCallback callback;
    private final ThreadPool threads; // null where llama.cpp makes its own
    private Arena logitsLife; // of the segment that logits() gave out
    private int outputRows;
    private final Guard guard = new Guard("the context");

    /**
     * Makes a context.
     *
     * @param callback called for every graph node, or null
     * @throws KvmergeException if llama.cpp cannot, as with options that do not go together, or if the machine has not
     *     the memory
     */
    public Context(Model model, ContextOptions options, ContextOptions.EvalCallback callback) {
        this.model = model;
        this.callback = callback;
        this.batch = Math.min(options.batch(), LlamaCache.padded(options.cells()));
        this.sequences = options.sequences();
        this.vocabulary = model.vocabularySize();
        if (options.compute().flashAttention() != ContextOptions.FlashAttention.OFF && model.flashAttentionAborts()) {
            throw new KvmergeException.Usage(
                    "llama.cpp aborts on flash attention with the model " + model.path() + ": use -fa off");
        }
        model.checkMemory(options, 0);
        tokens = arena.allocate(ValueLayout.JAVA_INT, batch);
        positions = arena.allocate(ValueLayout.JAVA_INT, batch);
        sequenceCounts = arena.allocate(ValueLayout.JAVA_INT, batch);
        sequenceIds = arena.allocate(ValueLayout.JAVA_INT, batch);
        sequencePointers = arena.allocate(ValueLayout.ADDRESS, batch);
        outputs = arena.allocate(batch);
        aborts = arena.allocate(ValueLayout.JAVA_INT);
        nativeBatch = llama_batch.allocate(arena);
        for (int i = 0; i < batch; i++) {
            sequenceCounts.setAtIndex(ValueLayout.JAVA_INT, i, 1);
            sequencePointers.setAtIndex(ValueLayout.ADDRESS, i, sequenceIds.asSlice(4L * i));
        }
        llama_batch.token(nativeBatch, tokens);
        llama_batch.embd(nativeBatch, MemorySegment.NULL);
        llama_batch.pos(nativeBatch, positions);
        llama_batch.n_seq_id(nativeBatch, sequenceCounts);
        llama_batch.seq_id(nativeBatch, sequencePointers);
        llama_batch.logits(nativeBatch, outputs);
        MemorySegment made = MemorySegment.NULL;
        try {
            options.compute().checkCellTypes();
            made = model.makeContext(params(options));
            threads = ThreadPool.attach(made, options.compute().threads(), callback != null);
        } catch (RuntimeException | Error e) {
            if (!made.equals(MemorySegment.NULL)) {
                Llama_h.llama_free(made);
                model.contextClosed();
            }
            arena.close();
            throw e;
        }
        handle = made;
        cells = Llama_h.llama_n_ctx(handle);
        if (NativeLibrary.find()) { // else nothing ends a decode early
            Llama_h.llama_set_abort_callback(handle, Kvmerge_h.kvmerge_abort_callback$address(), aborts);
        }
        if (callback != null) {
            callback.acquire();
        }
    }

    /** In the context's own memory. */
    private MemorySegment params(ContextOptions options) {
        ComputeSettings compute = options.compute();
        MemorySegment params = Llama_h.llama_context_default_params(arena);
        llama_context_params.n_ctx(params, options.cells());
        llama_context_params.n_batch(params, batch);
        llama_context_params.n_ubatch(params, Math.min(options.ubatch(), batch));
        llama_context_params.n_seq_max(params, options.sequences());
        llama_context_params.kv_unified(params, false); // sequences have cells of their own
        llama_context_params.n_threads(params, compute.threads());
        llama_context_params.n_threads_batch(params, compute.threads());
        llama_context_params.flash_attn_type(
                params,
                switch (compute.flashAttention()) {
                    case AUTO -> Llama_h.LLAMA_FLASH_ATTN_TYPE_AUTO();
                    case OFF -> Llama_h.LLAMA_FLASH_ATTN_TYPE_DISABLED();
                    case ON -> Llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED();
                });
        llama_context_params.type_k(params, ggmlType(compute.keyType()));
        llama_context_params.type_v(params, ggmlType(compute.valueType()));
        llama_context_params.yarn_orig_ctx(params, model.longRopeOriginal()); // 0: the model's own
        llama_context_params.no_perf(params, true);
        llama_context_params.swa_full(params, false); // layers with sliding windows get no more cells than they need
        if (callback != null) {
            llama_context_params.cb_eval(params, callback.function());
            llama_context_params.cb_eval_user_data(params, callback.userData());
        }
        return params;
    }

    private static int ggmlType(ContextOptions.CellType type) {
        return switch (type) {
            case F32 -> Llama_h.GGML_TYPE_F32();
            case F16 -> Llama_h.GGML_TYPE_F16();
            case BF16 -> Llama_h.GGML_TYPE_BF16();
            case Q8_0 -> Llama_h.GGML_TYPE_Q8_0();
            case Q4_0 -> Llama_h.GGML_TYPE_Q4_0();
            case Q4_1 -> Llama_h.GGML_TYPE_Q4_1();
            case Q5_0 -> Llama_h.GGML_TYPE_Q5_0();
            case Q5_1 -> Llama_h.GGML_TYPE_Q5_1();
            case IQ4_NL -> Llama_h.GGML_TYPE_IQ4_NL();
        };
    }

    public Model model() {
        return model;
    }

    /** KV cells allocated, of all sequences: those asked for, rounded up to llama.cpp's padding. */
    public int cells() {
        return cells;
    }

    /** KV cells of each sequence. */
    public int cellsOfSequence() {
        return cells / sequences;
    }

    /** Sequences side by side. */
    public int sequences() {
        return sequences;
    }

    /** Most tokens a decode. */
    public int batch() {
        return batch;
    }

    /** One token of a batch. */
    public record Item(int token, int position, int sequence, boolean output) {}

    /** Where a batch's tokens come from. */
    @FunctionalInterface
    public interface Items {
        Item get(int i);
    }

    /** Decodes tokens at consecutive positions of sequence 0, with logits for each. */
    public void decode(int[] block, int firstPosition) {
        decode(block, firstPosition, true);
    }

    /** As above, with logits for each token or for the last one alone. */
    public void decode(int[] block, int firstPosition, boolean allLogits) {
        int last = block.length - 1;
        decode(block.length, i -> new Item(block[i], firstPosition + i, 0, allLogits || i == last));
    }

    /**
     * Decodes a batch and waits for it. Afterwards {@link #logits()} holds a row for each output, in the batch's order.
     *
     * @throws Aborted if {@link #abort} says so
     * @throws KvmergeException if there are no free cells for it, or the computation fails
     * @throws IllegalArgumentException if it is empty or larger than {@link #batch()}, or names a token or sequence
     *     that is none
     * @throws IllegalStateException if the context is closed or another thread uses it
     */
    public void decode(int n, Items items) {
        if (n <= 0 || n > batch) {
            throw new IllegalArgumentException("a batch of " + n + " tokens; it takes 1 to " + batch);
        }
        try (Guard.Use _ = guard.exclusive()) {
            int rows = fill(n, items);
            try (Guard.Use _ = callback == null ? null : callback.guard().exclusive()) {
                endLogits();
                decodeBatch(n);
            }
            outputRows = rows;
        }
    }

    /** A decode that {@link #abort} ended. What its batch has left in the cache is for the caller to remove. */
    public static final class Aborted extends KvmergeException {
        private static final long serialVersionUID = 1L;

        private Aborted() {
            super("decoding was aborted");
        }
    }

    /**
     * Ends the decode that runs, or the next one, at its graph's next node, with {@link Aborted}; or takes that back.
     * It stays so until it is taken back. Any thread, but not beside {@link #close}. Only the CPU backend looks.
     */
    public void abort(boolean now) {
        ABORTS.setVolatile(aborts, 0L, now ? 1 : 0);
    }

    /** The batch as it is filled. */
    private void decodeBatch(int n) {
        model.library().takeLog();
        int status = Llama_h.llama_decode(handle, nativeBatch);
        if (status == ABORTED) {
            model.library().takeLog(); // it warns of what it removed
            throw new Aborted();
        }
        if (status != 0) {
            String why = status == 1
                    ? "no free KV cells for " + n + " tokens among " + cells + ": compress first, or use more cells"
                    : "status " + status;
            throw new KvmergeException(
                    "llama.cpp cannot decode: " + why + "; " + model.library().takeLog());
        }
        Llama_h.llama_synchronize(handle);
    }

    /** Writes the batch; how many rows of logits it makes. */
    private int fill(int n, Items items) {
        int rows = 0;
        for (int i = 0; i < n; i++) {
            Item item = items.get(i);
            checkSequence(item.sequence());
            if (item.position() < 0) {
                throw new IllegalArgumentException("no such place in the cache: " + item);
            }
            tokens.setAtIndex(ValueLayout.JAVA_INT, i, model.checkToken(item.token()));
            positions.setAtIndex(ValueLayout.JAVA_INT, i, item.position());
            sequenceIds.setAtIndex(ValueLayout.JAVA_INT, i, item.sequence());
            outputs.set(ValueLayout.JAVA_BYTE, i, (byte) (item.output() ? 1 : 0));
            rows += item.output() ? 1 : 0;
        }
        llama_batch.n_tokens(nativeBatch, n);
        return rows;
    }

    /**
     * The last batch's logits: F32 [outputs][vocabulary], llama.cpp's own memory. The segment ends with the next decode
     * or close: after that, reading it throws {@link IllegalStateException}.
     */
    public MemorySegment logits() {
        try (Guard.Use _ = guard.exclusive()) {
            if (outputRows == 0) {
                throw new IllegalStateException("no logits: decode a batch with outputs first");
            }
            if (logitsLife == null) {
                logitsLife = Arena.ofShared();
            }
            MemorySegment logits = Llama_h.llama_get_logits(handle);
            if (logits.equals(MemorySegment.NULL)) {
                throw new IllegalStateException("llama.cpp has no logits of the last batch");
            }
            return logits.reinterpret(4L * outputRows * vocabulary, logitsLife, null);
        }
    }

    /** Fails, and changes nothing, while another thread's native call reads the segment. */
    private void endLogits() {
        if (logitsLife != null) {
            logitsLife.close();
            logitsLife = null;
        }
        outputRows = 0;
    }

    /**
     * Runs what works on this context by its address: alone, as a decode.
     *
     * @param endsLogits whether {@link #logits()} are over then
     * @throws IllegalStateException if the context is closed or another thread uses it
     */
    public void alone(boolean endsLogits, Consumer<MemorySegment> body) {
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = callback == null ? null : callback.guard().exclusive()) {
            if (endsLogits) {
                endLogits();
            }
            body.accept(handle);
        }
    }

    /** Rows of {@link #logits()}. */
    public int logitRows() {
        return outputRows;
    }

    /** Frees the cells of sequence 0 with positions in [from, to). */
    public void removePositions(int from, int to) {
        removePositions(0, from, to);
    }

    /** Frees the cells of a sequence with positions in [from, to). */
    public void removePositions(int sequence, int from, int to) {
        checkSequence(sequence);
        if (from < 0 || to < from) {
            throw new IllegalArgumentException("not a range of positions: [" + from + ", " + to + ")");
        }
        try (Guard.Use _ = guard.exclusive()) {
            if (from < to && !Llama_h.llama_memory_seq_rm(memory(), sequence, from, to)) {
                throw new KvmergeException(
                        "llama.cpp cannot free the positions [" + from + ", " + to + ") of sequence " + sequence);
            }
        }
    }

    /** Whether positions can be moved: not in a cache with sliding windows of fewer cells, nor with M-RoPE. */
    public boolean canMovePositions() {
        try (Guard.Use _ = guard.exclusive()) {
            return Llama_h.llama_memory_can_shift(memory());
        }
    }

    /**
     * Moves the positions [from, to) of sequence 0; the next decode rotates the keys to match.
     *
     * @param by added to each
     * @throws KvmergeException if the cache cannot: {@link #canMovePositions} says so beforehand
     */
    public void movePositions(int from, int to, int by) {
        if (from < 0 || to < from || from + (long) by < 0 || to + (long) by > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("not positions to move: [" + from + ", " + to + ") by " + by);
        }
        try (Guard.Use _ = guard.exclusive()) {
            if (!Llama_h.llama_memory_can_shift(memory())) { // llama.cpp would end the process
                throw new KvmergeException("llama.cpp cannot move positions in the cache of the model " + model.path()
                        + ", which has sliding windows or positions of several parts: use another model");
            }
            Llama_h.llama_memory_seq_add(memory(), 0, from, to, by);
        }
    }

    /** The newest position of sequence 0 in the cache, or -1 when it is empty. */
    public int newestPosition() {
        return newestPosition(0);
    }

    /** The newest position of a sequence in the cache, or -1 when it is empty. */
    public int newestPosition(int sequence) {
        checkSequence(sequence);
        try (Guard.Use _ = guard.exclusive()) {
            return Llama_h.llama_memory_seq_pos_max(memory(), sequence);
        }
    }

    /**
     * The oldest position of a sequence that every layer has, those with sliding windows too, or -1 when it is empty.
     * Layers with windows have all from here on.
     */
    public int oldestPosition(int sequence) {
        checkSequence(sequence);
        try (Guard.Use _ = guard.exclusive()) {
            return Llama_h.llama_memory_seq_pos_min(memory(), sequence);
        }
    }

    /** Frees all cells of a sequence, and no others. */
    public void clear(int sequence) {
        removePositions(sequence, 0, Integer.MAX_VALUE);
    }

    private void checkSequence(int sequence) {
        if (sequence < 0 || sequence >= sequences) {
            throw new IllegalArgumentException("no sequence " + sequence + ": there are " + sequences);
        }
    }

    /** Frees all cells. */
    public void clear() {
        try (Guard.Use _ = guard.exclusive()) {
            endLogits();
            Llama_h.llama_memory_clear(memory(), true);
        }
    }

    private MemorySegment memory() {
        return Llama_h.llama_get_memory(handle);
    }

    /**
     * Frees the context.
     *
     * @throws IllegalStateException if a thread is inside, or reads the logits in native code; it stays open then
     */
    @Override
    public void close() {
        guard.close(() -> {
            endLogits();
            Llama_h.llama_free(handle);
            if (threads != null) {
                threads.close();
            }
            arena.close();
            model.contextClosed();
            if (callback != null) {
                callback.release();
            }
        });
    }
}
