package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Llama_h;
import dev.kvmerge.bindings.llama_context_params;
import dev.kvmerge.bindings.llama_model_params;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;

/**
 * A loaded GGUF model: its weights and its vocabulary. Its methods may run on several threads. Close it after its
 * contexts; while a thread is inside, or after it was closed, the calls that cannot be get an
 * {@link IllegalStateException}.
 */
public final class Model implements AutoCloseable {
    private static final int FIRST_TEXT = 256; // bytes; what is longer is asked for again

    private final LlamaLibrary library;
    private final Path path;
    private final GgufHeader header;
    private final MemorySegment handle;
    private final MemorySegment vocabulary;
    private Shape shape;
    private int slidingWindow;
    private List<Integer> windowedLayers = List.of();
    private final Backend backend;
    private final int vocabularySize;
    private final AtomicInteger openContexts = new AtomicInteger();
    private final Guard guard = new Guard("the model");

    private Model(LlamaLibrary library, GgufHeader header, Backend backend, MemorySegment handle) {
        this.backend = backend;
        this.library = library;
        this.header = header;
        this.path = header.path();
        this.handle = handle;
        this.vocabulary = Llama_h.llama_model_get_vocab(handle);
        this.vocabularySize = Llama_h.llama_vocab_n_tokens(vocabulary);
    }

    /**
     * Loads a GGUF file. Its header is read and checked first, since llama.cpp ends the process over many that are
     * wrong.
     *
     * @param backend where its layers live
     * @param gpuLayers layers to keep on the devices, as llama.cpp's -ngl: -1 for all; of no meaning on the CPU
     * @throws KvmergeException if it is missing, empty, not GGUF, truncated, contradicts itself, or is a model without
     *     an ordinary KV cache, alike in all layers
     */
    public static Model load(LlamaLibrary library, Path path, Backend backend, int gpuLayers) {
        GgufHeader header = GgufHeader.read(path);
        library.takeLog();
        MemorySegment handle;
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment params = Llama_h.llama_model_default_params(arena);
            llama_model_params.n_gpu_layers(params, backend == Backend.CPU ? 0 : gpuLayers);
            if (backend == Backend.CPU) {
                llama_model_params.devices(params, arena.allocate(ValueLayout.ADDRESS)); // an empty list: the CPU alone
            }
            LongRope longRope = LongRope.of(header);
            if (longRope != null) {
                llama_model_params.kv_overrides(params, longRope.override(arena));
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
            Model model = new Model(library, header, backend, handle);
            model.findShape();
            return model;
        } catch (RuntimeException e) {
            Llama_h.llama_model_free(handle);
            throw e;
        }
    }

    /** The layers that attend to everything, which have to be alike. */
    private void findShape() {
        List<Integer> full =
                IntStream.range(0, Llama_h.llama_model_n_layer(handle)).boxed().toList();
        int window = Llama_h.llama_model_n_swa(handle);
        if (window > 0) {
            int all = full.size();
            FullLayers.Found found = FullLayers.of(this, window);
            full = found.full();
            if (full.isEmpty()) {
                throw new KvmergeException("every layer of the model " + path + " has a sliding window of " + window
                        + " positions: its cache does not grow, and there is nothing to compress");
            }
            slidingWindow = full.size() == all ? 0 : window;
            windowedLayers = found.windowed();
        }
        int first = full.getFirst();
        if (header.heads(first) == 0 || header.kvHeads(first) == 0) {
            throw new KvmergeException("the model " + path + " has layers without attention, layer " + first
                    + " among them: it has no ordinary KV cache to compress");
        }
        for (int layer : full) {
            if (header.heads(layer) != header.heads(first) || header.kvHeads(layer) != header.kvHeads(first)) {
                throw new KvmergeException("the model " + path + " has layers of different shapes: layer " + first
                        + " has " + header.heads(first) + " heads on " + header.kvHeads(first) + " KV heads, layer "
                        + layer + " has " + header.heads(layer) + " on " + header.kvHeads(layer)
                        + ", and kvmerge compresses layers that are alike: use another model");
            }
        }
        shape = new Shape(full, (int) header.heads(first), (int) header.kvHeads(first));
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
        try (Guard.Use _ = guard.shared();
                Arena arena = Arena.ofConfined()) {
            return text(arena, (text, size) -> Llama_h.llama_model_desc(handle, text, size));
        }
    }

    /** Bytes of its weights. */
    public long bytes() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_model_size(handle);
        }
    }

    /** Number of its weights. */
    public long parameters() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_model_n_params(handle);
        }
    }

    /**
     * Whether llama.cpp v0.5.0 fails an assertion: it takes PLM's values, whose heads are one dimension, for tokens.
     */
    public boolean flashAttentionAborts() {
        return header.architecture().equals("plm");
    }

    /** LongRoPE's original positions as the file has them; 0 for a model without it. */
    int longRopeOriginal() {
        LongRope longRope = LongRope.of(header);
        return longRope == null ? 0 : longRope.original();
    }

    /** A metadata value as text, whole, or null. */
    public String metadata(String key) {
        try (Guard.Use _ = guard.shared();
                Arena arena = Arena.ofConfined()) {
            MemorySegment name = arena.allocateFrom(key);
            return text(arena, (text, size) -> Llama_h.llama_model_meta_val_str(handle, name, text, size));
        }
    }

    /** A function of llama.cpp that writes a text, as snprintf does: it returns the bytes that the whole takes. */
    private interface Writer {
        int write(MemorySegment text, long size);
    }

    private static String text(Arena arena, Writer writer) {
        MemorySegment text = arena.allocate(FIRST_TEXT);
        int n = writer.write(text, text.byteSize());
        if (n >= text.byteSize()) {
            text = arena.allocate(n + 1L);
            n = writer.write(text, text.byteSize());
        }
        return n < 0 ? null : text.getString(0);
    }

    /** Tokens that it knows, with words for them or without. */
    public int vocabularySize() {
        return vocabularySize;
    }

    /** Positions the model was trained on. */
    public int trainedContext() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_model_n_ctx_train(handle);
        }
    }

    /** Positions of the sliding window that some layers have; 0 when every layer attends to everything. */
    public int slidingWindow() {
        return slidingWindow;
    }

    /** Whether a text starts with the BOS token. */
    public boolean addsBos() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_vocab_get_add_bos(words());
        }
    }

    /** The token that begins a text, or -1 where there is none. */
    public int bos() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_vocab_bos(words());
        }
    }

    /** The token that ends a text, or -1 where there is none. */
    public int eos() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_vocab_eos(words());
        }
    }

    /** The token that ends a turn of a conversation, or -1 where there is none. */
    public int eot() {
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_vocab_eot(words());
        }
    }

    /** Whether a token is special: {@link #tokenize(String)} makes none of a text, and {@link #piece} is empty. */
    public boolean isSpecial(int token) {
        return has(token, Llama_h.LLAMA_TOKEN_ATTR_CONTROL() | Llama_h.LLAMA_TOKEN_ATTR_UNKNOWN());
    }

    /** Whether white space before a special token's name is a part of the token. */
    public boolean takesSpaceBefore(int token) {
        return has(token, Llama_h.LLAMA_TOKEN_ATTR_LSTRIP());
    }

    /** Whether white space behind a special token's name is a part of the token. */
    public boolean takesSpaceBehind(int token) {
        return has(token, Llama_h.LLAMA_TOKEN_ATTR_RSTRIP());
    }

    private boolean has(int token, int attributes) {
        checkToken(token);
        try (Guard.Use _ = guard.shared()) {
            return (Llama_h.llama_vocab_get_attr(words(), token) & attributes) != 0;
        }
    }

    /** Whether a token ends a generation (EOS, EOT, ...). */
    public boolean endsGeneration(int token) {
        checkToken(token);
        try (Guard.Use _ = guard.shared()) {
            return Llama_h.llama_vocab_is_eog(words(), token);
        }
    }

    /**
     * Text to tokens; special tokens such as BOS are added as the model wants them, and not parsed from the text.
     *
     * @throws KvmergeException if the model has no vocabulary, or it lacks a character of the text and the tokens of
     *     its bytes
     */
    public int[] tokenize(String text) {
        return tokenize(text, true, false);
    }

    /**
     * Text to tokens.
     *
     * @param addSpecial whether to add BOS and EOS, as the model wants them
     * @param parseSpecial whether a special token's text, such as "&lt;|im_start|&gt;", becomes that token; never for a
     *     text from outside, which could end its own turn
     * @throws KvmergeException as above
     */
    public int[] tokenize(String text, boolean addSpecial, boolean parseSpecial) {
        if (header.isSentencePiece()) { // llama.cpp ends the process
            header.words().unknown(text).ifPresent(character -> {
                throw new KvmergeException("the model " + path + " has no token for the character '"
                        + Character.toString(character) + "', nor for its bytes: use another model, or another text");
            });
        }
        try (Guard.Use _ = guard.shared();
                Arena arena = Arena.ofConfined()) {
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            int most = Math.addExact(bytes.length, 16); // nearly always: a token is a byte or more
            MemorySegment in = arena.allocate(bytes.length + 1L);
            MemorySegment.copy(bytes, 0, in, ValueLayout.JAVA_BYTE, 0, bytes.length);
            MemorySegment out = arena.allocate(ValueLayout.JAVA_INT, most);
            int n = Llama_h.llama_tokenize(words(), in, bytes.length, out, most, addSpecial, parseSpecial);
            if (n < 0 && n != Integer.MIN_VALUE) { // it needs so many: a space may be three tokens of bytes
                out = arena.allocate(ValueLayout.JAVA_INT, -n);
                n = Llama_h.llama_tokenize(words(), in, bytes.length, out, -n, addSpecial, parseSpecial);
            }
            if (n < 0) {
                throw new KvmergeException("llama.cpp cannot tokenize a text of " + bytes.length + " bytes");
            }
            return out.asSlice(0, 4L * n).toArray(ValueLayout.JAVA_INT);
        }
    }

    /** The bytes of a token, none for a special one; may be a part of a UTF-8 character. */
    public byte[] piece(int token) {
        return piece(token, false);
    }

    /**
     * The bytes of a token; may be a part of a UTF-8 character.
     *
     * @param special whether a special token has the bytes of its name, such as "&lt;|im_start|&gt;", or none
     */
    public byte[] piece(int token, boolean special) {
        checkToken(token);
        try (Guard.Use _ = guard.shared();
                Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(FIRST_TEXT);
            int n = Llama_h.llama_token_to_piece(words(), token, out, (int) out.byteSize(), 0, special);
            if (n < 0) { // it needs so many
                out = arena.allocate(-n);
                n = Llama_h.llama_token_to_piece(words(), token, out, -n, 0, special);
            }
            return out.asSlice(0, n).toArray(ValueLayout.JAVA_BYTE);
        }
    }

    GgufHeader header() {
        return header;
    }

    /** Whether all heads' keys and values have a multiple of so many elements, as quantised cells want. */
    public boolean headSizesAreMultiplesOf(int n) {
        return fullLayers().stream()
                .allMatch(layer -> header.headSize("attention.key_length", layer) % n == 0
                        && header.headSize("attention.value_length", layer) % n == 0);
    }

    /** The numbers of the layers whose cells grow with the context; of all, until that is known. */
    List<Integer> fullLayers() {
        return shape == null ? IntStream.range(0, header.layers()).boxed().toList() : shape.layerNumbers();
    }

    /** The numbers of the layers that have sliding windows, and cells of their own for them. */
    List<Integer> windowedLayers() {
        return windowedLayers;
    }

    /**
     * Refuses a context that the machine has not the memory for, before anything is touched.
     *
     * @param tables bytes of what is kept beside its cells, on the host
     * @throws KvmergeException naming what is needed and what is free
     */
    public void checkMemory(ContextOptions options, long tables) {
        checkMemory(options, tables, 0, false);
    }

    /**
     * As above.
     *
     * @param queries bytes of those that are captured, where the model's layers lie
     * @param brought whether these come to the host to be looked at even from a GPU
     */
    public void checkMemory(ContextOptions options, long tables, long queries, boolean brought) {
        MemoryNeed.of(this, options, tables, queries, brought).check(options.cells(), FreeMemory.bytes());
    }

    int checkToken(int token) {
        if (token < 0 || token >= vocabularySize) {
            throw new IllegalArgumentException("token " + token + " is outside the vocabulary of " + vocabularySize);
        }
        return token;
    }

    /** Enters the model beside others: it is not closed meanwhile. */
    Guard.Use use() {
        return guard.shared();
    }

    /** llama.cpp ends the process when a model without words is asked about them. */
    MemorySegment words() {
        if (!header.hasVocabulary()) {
            throw new KvmergeException("the model " + path
                    + " has no vocabulary (its tokenizer is 'none'): give it tokens, or use a model that has one");
        }
        return vocabulary;
    }

    /** Makes a context, which counts until {@link #contextClosed}. */
    MemorySegment makeContext(MemorySegment params) {
        try (Guard.Use _ = guard.shared()) {
            library.takeLog();
            MemorySegment context = Llama_h.llama_init_from_model(handle, params);
            if (context.equals(MemorySegment.NULL)) {
                throw new KvmergeException("llama.cpp cannot make a context of " + llama_context_params.n_ctx(params)
                        + " cells: " + library.takeLog());
            }
            openContexts.incrementAndGet();
            return context;
        }
    }

    void contextClosed() {
        openContexts.decrementAndGet();
    }

    /**
     * Frees the weights.
     *
     * @throws IllegalStateException if a context of it is still open, or another thread is inside; it stays open then
     */
    @Override
    public void close() {
        guard.close(() -> {
            if (openContexts.get() > 0) {
                throw new IllegalStateException("the model still has " + openContexts + " open contexts");
            }
            Llama_h.llama_model_free(handle);
        });
    }
}
