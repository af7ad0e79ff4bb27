package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Llama_h;
import dev.kvmerge.bindings.llama_model_params;
import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/** A loaded GGUF model: its weights and its vocabulary. Close it after its contexts. Not thread-safe. */
public final class Model implements AutoCloseable {
    private static final byte[] MAGIC = "GGUF".getBytes(StandardCharsets.US_ASCII);

    private final LlamaLibrary library;
    private final Path path;
    private final MemorySegment handle;
    private final MemorySegment vocabulary;
    private Shape shape;
    private int slidingWindow;
    private final Backend backend;
    private int openContexts;
    private boolean closed;

    private Model(LlamaLibrary library, Path path, Backend backend, MemorySegment handle) {
        this.backend = backend;
        this.library = library;
        this.path = path;
        this.handle = handle;
        this.vocabulary = Llama_h.llama_model_get_vocab(handle);
        this.shape = Shape.of(
                Llama_h.llama_model_n_layer(handle),
                Llama_h.llama_model_n_head(handle),
                Math.max(1, Llama_h.llama_model_n_head_kv(handle)));
    }

    /**
     * Loads a GGUF file.
     *
     * @param backend where its layers live
     * @param gpuLayers layers to keep on the devices, as llama.cpp's -ngl: -1 for all; of no meaning on the CPU
     * @throws KvmergeException if it is missing, empty, not GGUF, truncated, or a model without an ordinary KV cache
     */
    public static Model load(LlamaLibrary library, Path path, Backend backend, int gpuLayers) {
        checkFile(path);
        library.takeLog();
        MemorySegment handle;
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment params = Llama_h.llama_model_default_params(arena);
            llama_model_params.n_gpu_layers(params, backend == Backend.CPU ? 0 : gpuLayers);
            if (backend == Backend.CPU) {
                llama_model_params.devices(params, arena.allocate(ValueLayout.ADDRESS)); // an empty list: the CPU alone
            }
            handle = Llama_h.llama_model_load_from_file(arena.allocateFrom(path.toString()), params);
        }
        if (handle.equals(MemorySegment.NULL)) {
            throw new KvmergeException("llama.cpp cannot load the model " + path
                    + " (truncated, or not a supported model?): " + library.takeLog());
        }
        try {
            if (Llama_h.llama_model_is_recurrent(handle)
                    || Llama_h.llama_model_is_hybrid(handle)
                    || Llama_h.llama_model_has_encoder(handle)) {
                throw new KvmergeException("the model " + path
                        + " is recurrent or has an encoder: it has no ordinary KV cache to compress");
            }
            return new Model(library, path, backend, handle).withoutWindows();
        } catch (RuntimeException e) {
            Llama_h.llama_model_free(handle);
            throw e;
        }
    }

    /** Leaves the layers with sliding windows out of the shape. */
    private Model withoutWindows() {
        int window = Llama_h.llama_model_n_swa(handle);
        if (window > 0) {
            List<Integer> full = FullLayers.of(this, window);
            if (full.isEmpty()) {
                throw new KvmergeException("every layer of the model " + path + " has a sliding window of " + window
                        + " positions: its cache does not grow, and there is nothing to compress");
            }
            slidingWindow = full.size() == shape.layers() ? 0 : window;
            shape = new Shape(full, shape.heads(), shape.kvHeads());
        }
        return this;
    }

    private static void checkFile(Path path) {
        if (!Files.exists(path)) {
            throw new KvmergeException(
                    "no model at " + path + ": give a GGUF file with -m, or a name from 'kvmerge models'");
        }
        try (InputStream in = Files.newInputStream(path)) {
            byte[] head = in.readNBytes(MAGIC.length);
            if (head.length == 0) {
                throw new KvmergeException("the model " + path + " is empty: fetch it again");
            }
            if (!Arrays.equals(head, MAGIC)) {
                throw new KvmergeException(
                        "the model " + path + " is not a GGUF file: convert it with llama.cpp's convert_hf_to_gguf.py");
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot read the model " + path + ": " + e.getMessage(), e);
        }
    }

    public Path path() {
        return path;
    }

    public LlamaLibrary library() {
        return library;
    }

    /** The attention that can be compressed. */
    public Shape shape() {
        return shape;
    }

    /** Where its layers live. */
    public Backend backend() {
        return backend;
    }

    /** What llama.cpp calls it, as "llama 256M Q4_1". */
    public String description() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = arena.allocate(256);
            Llama_h.llama_model_desc(open(), text, text.byteSize());
            return text.getString(0);
        }
    }

    /** Bytes of its weights. */
    public long bytes() {
        return Llama_h.llama_model_size(open());
    }

    /** Number of its weights. */
    public long parameters() {
        return Llama_h.llama_model_n_params(open());
    }

    /** A metadata value as text, or null. */
    public String metadata(String key) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = arena.allocate(1024);
            int n = Llama_h.llama_model_meta_val_str(open(), arena.allocateFrom(key), text, text.byteSize());
            return n < 0 ? null : text.getString(0);
        }
    }

    public int vocabularySize() {
        return Llama_h.llama_vocab_n_tokens(vocabulary());
    }

    /** Positions the model was trained on. */
    public int trainedContext() {
        return Llama_h.llama_model_n_ctx_train(open());
    }

    /** Positions of the sliding window that some layers have; 0 when every layer attends to everything. */
    public int slidingWindow() {
        return slidingWindow;
    }

    /** Whether a text starts with the BOS token. */
    public boolean addsBos() {
        return Llama_h.llama_vocab_get_add_bos(vocabulary());
    }

    public int bos() {
        return Llama_h.llama_vocab_bos(vocabulary());
    }

    /** Whether a token ends a generation (EOS, EOT, ...). */
    public boolean endsGeneration(int token) {
        return Llama_h.llama_vocab_is_eog(vocabulary(), checkToken(token));
    }

    /** Text to tokens; special tokens such as BOS are added as the model wants them, and not parsed from the text. */
    public int[] tokenize(String text) {
        try (Arena arena = Arena.ofConfined()) {
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            MemorySegment in = arena.allocate(bytes.length + 1L);
            MemorySegment.copy(bytes, 0, in, ValueLayout.JAVA_BYTE, 0, bytes.length);
            int most = bytes.length + 16; // a token is a byte at least, but for the special ones
            MemorySegment out = arena.allocate(ValueLayout.JAVA_INT, most);
            int n = Llama_h.llama_tokenize(vocabulary(), in, bytes.length, out, most, true, false);
            if (n < 0) {
                throw new KvmergeException("llama.cpp cannot tokenize a text of " + bytes.length + " bytes");
            }
            return out.asSlice(0, 4L * n).toArray(ValueLayout.JAVA_INT);
        }
    }

    /** The bytes of a token; may be a part of a UTF-8 character. */
    public byte[] piece(int token) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(256);
            int n = Llama_h.llama_token_to_piece(vocabulary(), checkToken(token), out, 256, 0, false);
            return out.asSlice(0, Math.max(0, n)).toArray(ValueLayout.JAVA_BYTE);
        }
    }

    int checkToken(int token) {
        if (token < 0 || token >= vocabularySize()) {
            throw new IllegalArgumentException("token " + token + " is outside the vocabulary of " + vocabularySize());
        }
        return token;
    }

    private MemorySegment vocabulary() {
        open();
        return vocabulary;
    }

    MemorySegment open() {
        if (closed) {
            throw new IllegalStateException("the model is closed");
        }
        return handle;
    }

    void contextOpened() {
        openContexts++;
    }

    void contextClosed() {
        openContexts--;
    }

    /**
     * Frees the weights.
     *
     * @throws IllegalStateException if a context of it is still open
     */
    @Override
    public void close() {
        if (!closed) {
            if (openContexts > 0) {
                throw new IllegalStateException("the model still has " + openContexts + " open contexts");
            }
            closed = true;
            Llama_h.llama_model_free(handle);
        }
    }
}
