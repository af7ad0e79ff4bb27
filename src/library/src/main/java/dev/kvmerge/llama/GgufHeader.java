package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;

/**
 * The header of a GGUF file: its metadata, and where its tensors lie. Read before llama.cpp reads it, because llama.cpp
 * ends the process over headers that contradict themselves. It takes memory for keys, scalars and short arrays of
 * numbers alone, however long the file's arrays are.
 */
final class GgufHeader {
    private static final int MAGIC = 0x46554747; // G G U F
    private static final int LONGEST_NAME = 1 << 16;
    private static final int LONGEST_TENSOR_NAME = 63;
    private static final int LONGEST_STRING = 1 << 20; // that is kept: a tokenizer as JSON has some 10^7 bytes
    private static final int LONGEST_KEPT = 4096; // elements of an array of numbers
    private static final int MOST_TOKENS = 1 << 24;
    private static final int MOST_ENTRIES = 1 << 16; // llama.cpp compares each key with all before it
    private static final int MOST_DIMENSIONS = 4;
    private static final long DEFAULT_ALIGNMENT = 32;
    private static final String TOKENIZER = "tokenizer.ggml.model";
    private static final String TOKENS = "tokenizer.ggml.tokens";
    private static final String TOKEN_TYPES = "tokenizer.ggml.token_type";

    /** The kinds of metadata values, in the order of their numbers in the file. */
    enum Kind {
        UINT8(1),
        INT8(1),
        UINT16(2),
        INT16(2),
        UINT32(4),
        INT32(4),
        FLOAT32(4),
        BOOL(1),
        STRING(0),
        ARRAY(0),
        UINT64(8),
        INT64(8),
        FLOAT64(8);

        final int bytes; // 0: they differ

        Kind(int bytes) {
            this.bytes = bytes;
        }

        boolean isInteger() {
            return bytes > 0 && !isReal() && this != BOOL;
        }

        boolean isReal() {
            return this == FLOAT32 || this == FLOAT64;
        }
    }

    /**
     * A metadata value.
     *
     * @param kind of the value or, where it is an array, of its elements
     * @param count elements; 1 for a scalar
     * @param numbers the value or the first elements as bits of a long or, for reals, of a double; empty for strings
     * @param text of a string that is no array's, and not too long to be of use here; else null
     */
    record Value(Kind kind, boolean array, long count, long[] numbers, String text) {
        double real(int i) {
            return kind.isReal() ? Double.longBitsToDouble(numbers[i]) : numbers[i];
        }
    }

    /** A tensor. shape: fastest dimension first; offset: from the start of the data. */
    record Tensor(GgufType type, long[] shape, long offset) {
        /** Bytes of its data; the type's blocks and the shape have been checked. */
        long bytes() {
            long elements = 1;
            for (long n : shape) {
                elements *= n;
            }
            return elements / type.block() * type.bytes();
        }
    }

    private final Path path;
    private final Map<String, Value> metadata = new LinkedHashMap<>();
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();
    private final GgufWords words = new GgufWords();

    private GgufHeader(Path path) {
        this.path = path;
    }

    /**
     * Reads a file's header.
     *
     * @throws KvmergeException if there is no file, or it is not a GGUF file, is truncated, or its header contradicts
     *     itself or what llama.cpp can load
     */
    static GgufHeader read(Path path) {
        GgufHeader header = parse(path);
        new GgufRules(header).check();
        return header;
    }

    private static GgufHeader parse(Path path) {
        if (!Files.exists(path)) {
            throw new KvmergeException(
                    "no model at " + path + ": give a GGUF file with -m, or a name from 'kvmerge models'");
        }
        try (FileChannel file = FileChannel.open(path, StandardOpenOption.READ)) {
            GgufHeader header = new GgufHeader(path);
            header.parse(new GgufReader(file, path));
            return header;
        } catch (IOException e) {
            throw new KvmergeException("cannot read the model " + path + ": " + e.getMessage(), e);
        }
    }

    private void parse(GgufReader in) throws IOException {
        if (in.size() == 0) {
            throw new KvmergeException("the model " + path + " is empty: fetch it again");
        }
        if (in.size() < 4 || in.int32("its magic") != MAGIC) {
            throw new KvmergeException(
                    "the model " + path + " is not a GGUF file: convert it with llama.cpp's convert_hf_to_gguf.py");
        }
        int version = in.int32("its version");
        if (version != 2 && version != 3) {
            throw in.refused(
                    (version & 0xffff) == 0
                            ? "it is a big-endian GGUF file"
                            : "it is GGUF version " + Integer.toUnsignedString(version)
                                    + ", and llama.cpp reads 2 and 3");
        }
        long tensorCount = count(in, "tensors");
        long keyCount = count(in, "keys");
        for (long i = 0; i < keyCount; i++) {
            String key = in.string(LONGEST_NAME, "the name of key " + i);
            if (key.isEmpty()) {
                throw in.refused("its key " + i + " has no name");
            }
            if (metadata.putIfAbsent(key, value(in, key)) != null) {
                throw in.refused("its key " + key + " comes twice");
            }
        }
        long alignment = alignment(in);
        for (long i = 0; i < tensorCount; i++) {
            String name = in.string(LONGEST_NAME, "the name of tensor " + i);
            if (name.isEmpty() || name.length() > LONGEST_TENSOR_NAME) {
                throw in.refused("the name of its tensor " + i + " has " + name.length() + " characters, not 1 to "
                        + LONGEST_TENSOR_NAME);
            }
            if (tensors.putIfAbsent(name, tensor(in, name)) != null) {
                throw in.refused("its tensor " + name + " comes twice");
            }
        }
        checkData(in, alignment);
    }

    private static long count(GgufReader in, String what) throws IOException {
        long n = in.int64("the number of its " + what);
        if (n < 0 || n > MOST_ENTRIES) {
            throw in.refused(
                    "it claims to have " + Long.toUnsignedString(n) + " " + what + ", more than " + MOST_ENTRIES);
        }
        return n;
    }

    private static Kind kind(GgufReader in, String key) throws IOException {
        int number = in.int32("the type of key " + key);
        if (number < 0 || number >= Kind.values().length) {
            throw in.refused("its key " + key + " has the type " + number + ", which is none");
        }
        return Kind.values()[number];
    }

    private Value value(GgufReader in, String key) throws IOException {
        String what = "the value of key " + key;
        Kind kind = kind(in, key);
        if (kind == Kind.STRING) {
            return new Value(kind, false, 1, new long[0], in.stringOrSkip(LONGEST_STRING, what));
        }
        if (kind != Kind.ARRAY) {
            return new Value(kind, false, 1, new long[] {number(in, kind, what)}, null);
        }
        Kind element = kind(in, key);
        long n = in.int64(what);
        if (element == Kind.ARRAY) {
            throw in.refused("its key " + key + " is an array of arrays");
        }
        if (n < 0 || n > in.remaining() / (element == Kind.STRING ? 8 : element.bytes)) {
            throw in.truncated(what + ", an array of " + Long.toUnsignedString(n) + " elements");
        }
        if (element == Kind.STRING) {
            boolean tokens = key.equals(TOKENS);
            if (tokens && n > MOST_TOKENS) {
                throw in.refused("its key " + key + " has " + n + " tokens, more than " + MOST_TOKENS);
            }
            for (long i = 0; i < n; i++) {
                if (tokens) {
                    words.add((int) i, in.bytes(LONGEST_NAME, "the text of token " + i));
                } else {
                    in.skip(in.int64(what), what);
                }
            }
            return new Value(element, true, n, new long[0], null);
        }
        long[] numbers = new long[(int) Math.min(n, LONGEST_KEPT)];
        boolean types = key.equals(TOKEN_TYPES);
        for (int i = 0; i < (types ? Math.min(n, MOST_TOKENS) : numbers.length); i++) {
            long number = number(in, element, what);
            if (i < numbers.length) {
                numbers[i] = number;
            }
            if (types) {
                words.addType(i, number);
            }
        }
        in.skip((n - (types ? Math.min(n, MOST_TOKENS) : numbers.length)) * element.bytes, what);
        return new Value(element, true, n, numbers, null);
    }

    private static long number(GgufReader in, Kind kind, String what) throws IOException {
        return switch (kind) {
            case FLOAT32 -> Double.doubleToRawLongBits(Float.intBitsToFloat(in.int32(what)));
            case UINT8, UINT16, UINT32, BOOL -> in.integer(kind.bytes, false, what);
            default -> in.integer(kind.bytes, true, what);
        };
    }

    private long alignment(GgufReader in) {
        Value value = metadata.get("general.alignment");
        if (value == null) {
            return DEFAULT_ALIGNMENT;
        }
        long alignment = value.array() || value.kind() != Kind.UINT32 ? 0 : value.numbers()[0];
        if (alignment < 8 || Long.bitCount(alignment) != 1 || alignment > 1 << 24) {
            throw in.refused("its general.alignment is no 32-bit power of two from 8 up");
        }
        return alignment;
    }

    private static Tensor tensor(GgufReader in, String name) throws IOException {
        String what = "the tensor " + name + " of its header";
        int dimensions = in.int32(what);
        if (dimensions < 0 || dimensions > MOST_DIMENSIONS) {
            throw in.refused("its tensor " + name + " has " + Integer.toUnsignedString(dimensions)
                    + " dimensions, more than " + MOST_DIMENSIONS);
        }
        long[] shape = new long[Math.max(1, dimensions)];
        shape[0] = 1;
        long elements = 1;
        for (int d = 0; d < dimensions; d++) {
            shape[d] = in.int64(what);
            if (shape[d] <= 0 || shape[d] > Long.MAX_VALUE / 1024 / elements) {
                throw in.refused("its tensor " + name + " has " + shape[d] + " elements along dimension " + d);
            }
            elements *= shape[d];
        }
        int number = in.int32(what);
        GgufType type = GgufType.numbered(number);
        if (type == null) {
            throw in.refused("its tensor " + name + " has the type " + number + ", which is none of weights");
        }
        if (shape[0] % type.block() != 0) {
            throw in.refused("its tensor " + name + " has rows of " + shape[0] + " elements, and " + type.name()
                    + " stores them in blocks of " + type.block());
        }
        return new Tensor(type, shape, in.int64(what));
    }

    /** llama.cpp asks that the tensors lie one behind the other, in the order of the header. */
    private void checkData(GgufReader in, long alignment) {
        long start = Math.ceilDiv(in.position(), alignment) * alignment;
        long expected = 0;
        for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
            Tensor tensor = entry.getValue();
            if (tensor.offset() != expected) {
                throw in.refused("its tensor " + entry.getKey() + " is said to start at "
                        + Long.toUnsignedString(tensor.offset()) + ", and the one before it ends at " + expected);
            }
            if (tensor.bytes() > in.size() - start - expected) {
                throw in.truncated("the tensor " + entry.getKey() + " of " + tensor.bytes() + " bytes");
            }
            expected += Math.ceilDiv(tensor.bytes(), alignment) * alignment;
        }
    }

    Path path() {
        return path;
    }

    Map<String, Value> metadata() {
        return metadata;
    }

    Map<String, Tensor> tensors() {
        return tensors;
    }

    /** What llama.cpp knows the kind of model by, as "llama". */
    String architecture() {
        return metadata.get("general.architecture").text();
    }

    /** Whether it has words for its tokens. */
    boolean hasVocabulary() {
        return !Set.of("none", "no_vocab").contains(tokenizer());
    }

    /** Whether it tokenizes as SentencePiece does. */
    boolean isSentencePiece() {
        return tokenizer().equals("llama");
    }

    private String tokenizer() {
        return metadata.get(TOKENIZER).text();
    }

    GgufWords words() {
        return words;
    }

    /** A number of the architecture, as "block_count"; of an array, its first. */
    long number(String key) {
        return metadata.get(architecture() + "." + key).numbers()[0];
    }

    int layers() {
        return (int) number("block_count");
    }

    /** Query heads of a layer. */
    long heads(int layer) {
        return perLayer("attention.head_count", layer);
    }

    /** KV heads of a layer. */
    long kvHeads(int layer) {
        String key = "attention.head_count_kv";
        return metadata.containsKey(architecture() + "." + key) ? perLayer(key, layer) : heads(layer);
    }

    /** Elements of a key or value of a layer's head, by the name of the key that says so. */
    long headSize(String key, int layer) {
        return metadata.containsKey(architecture() + "." + key)
                ? perLayer(key, layer)
                : number("embedding_length") / Math.max(1, heads(0));
    }

    private long perLayer(String key, int layer) {
        long[] numbers = metadata.get(architecture() + "." + key).numbers();
        return numbers.length == 0 ? 0 : numbers[Math.min(layer, numbers.length - 1)];
    }
}
