package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.GgufHeader.Kind;
import dev.kvmerge.llama.GgufHeader.Tensor;
import dev.kvmerge.llama.GgufHeader.Value;
import java.util.Arrays;
import java.util.Map;
import java.util.Set;

/**
 * What llama.cpp takes for granted of a header: where it is not so, llama.cpp ends the process (GGML_ASSERT), divides
 * by zero or reads behind an array. Each is refused here by the name of its key.
 */
final class GgufRules {
    private static final int MOST_LAYERS = 512; // LLAMA_MAX_LAYERS
    private static final int MOST_EXPERTS = 512; // LLAMA_MAX_EXPERTS
    private static final int MOST_HEADS = 1 << 14;
    private static final int MOST_ELEMENTS = 1 << 20; // of an embedding or a head
    private static final Set<String> MANY = // these may be arrays, of a number a layer
            Set.of(
                    "feed_forward_length",
                    "attention.head_count",
                    "attention.head_count_kv",
                    "expert_used_count",
                    "attention.key_length",
                    "attention.value_length");
    /** Architectures whose layers are the ordinary ones, and whose keys are rotated whole. */
    private static final Set<String> FULLY_ROTATED = Set.of(
            "llama",
            "internlm2",
            "olmo",
            "olmo2",
            "olmoe",
            "orion",
            "qwen2",
            "qwen2moe",
            "qwen3",
            "qwen3moe",
            "xverse");
    /** The same, with keys that may be rotated in part. */
    private static final Set<String> PARTLY_ROTATED = Set.of("gemma", "gemma2", "gemma3");

    private static final Set<String> SCALINGS = Set.of("none", "linear", "yarn", "longrope");

    /** Models that attend to what is to come: llama.cpp gives them no KV cache. */
    private static final Set<String> WITHOUT_CACHE = Set.of(
            "bert",
            "dream",
            "eurobert",
            "gemma-embedding",
            "jina-bert-v2",
            "jina-bert-v3",
            "llada",
            "llada-moe",
            "modern-bert",
            "neo-bert",
            "nomic-bert",
            "nomic-bert-moe",
            "rnd1",
            "wavtokenizer-dec");

    private final GgufHeader header;
    private String prefix;

    GgufRules(GgufHeader header) {
        this.header = header;
    }

    void check() {
        prefix = text("general.architecture", true) + ".";
        if (WITHOUT_CACHE.contains(header.architecture()) || isFalse("attention.causal")) {
            throw new KvmergeException("the model " + header.path() + " is of the architecture " + header.architecture()
                    + ", whose tokens attend to those to come too: it has no KV cache to compress");
        }
        checkSizes();
        checkHeads();
        checkExperts();
        checkOrdinaryLayers();
        checkReals();
        checkVocabulary();
        checkTensors();
    }

    private KvmergeException refused(String why) {
        return new KvmergeException(
                "the model " + header.path() + " cannot be used: " + why + ": fetch or convert it again");
    }

    private String text(String key, boolean needed) {
        Value value = header.metadata().get(key);
        if (value == null && !needed) {
            return null;
        }
        if (value == null || value.text() == null) {
            throw refused("its key " + key + (value == null ? " is missing" : " is no text"));
        }
        return value.text();
    }

    private Value own(String key) {
        return header.metadata().get(prefix + key);
    }

    private boolean isFalse(String key) {
        Value value = own(key);
        return value != null && value.kind() == Kind.BOOL && value.numbers()[0] == 0;
    }

    /** A number of the architecture, or all of an array, within bounds. */
    private void range(String key, long least, long most, boolean needed) {
        Value value = own(key);
        if (value == null) {
            if (needed) {
                throw refused("its key " + prefix + key + " is missing");
            }
            return;
        }
        if (!value.kind().isInteger()) {
            throw refused("its key " + prefix + key + " is no integer");
        }
        if (value.array() && value.count() != (MANY.contains(key) ? header.layers() : -1)) {
            throw refused("its key " + prefix + key + " is an array of " + value.count()
                    + (MANY.contains(key) ? " numbers for " + header.layers() + " layers" : ", and not a number"));
        }
        for (long number : value.numbers()) {
            if (number < least || number > most) {
                throw refused(
                        "its " + prefix + key + " is " + Long.toString(number) + ", not " + least + " to " + most);
            }
        }
    }

    private void checkSizes() {
        range("block_count", 1, MOST_LAYERS, true);
        range("context_length", 1, Integer.MAX_VALUE, true);
        range("embedding_length", 1, MOST_ELEMENTS, true);
        range("feed_forward_length", 0, Integer.MAX_VALUE, false);
        range("vocab_size", 1, 1 << 24, false);
        range("attention.sliding_window", 0, 1 << 30, false);
        range("rope.scaling.original_context_length", 1, Integer.MAX_VALUE, false);
        range("nextn_predict_layers", 0, header.layers() - 1, false);
        checkWindows();
        Value scaling = own("rope.scaling.type");
        if (scaling != null && !SCALINGS.contains(text(prefix + "rope.scaling.type", true))) {
            throw refused("its " + prefix + "rope.scaling.type is '" + scaling.text() + "', none of " + SCALINGS);
        }
    }

    /** Of each so many layers the last has no window: llama.cpp takes it that some have one. */
    private void checkWindows() {
        Value pattern = own("attention.sliding_window_pattern");
        if (pattern == null || number("attention.sliding_window") == 0) {
            return;
        }
        boolean none = pattern.array()
                ? pattern.numbers().length == 0
                        || Arrays.stream(pattern.numbers()).allMatch(n -> n == 0)
                : pattern.kind().isInteger() && pattern.numbers()[0] == 1;
        if (none) {
            throw refused("its " + prefix + "attention.sliding_window_pattern gives no layer the window of "
                    + number("attention.sliding_window") + " positions");
        }
    }

    private void checkHeads() {
        Value heads = own("attention.head_count");
        if (heads != null && !heads.array() && heads.kind().isInteger() && heads.numbers()[0] == 0) {
            throw refused("its " + prefix + "attention.head_count is 0, and a model without attention has no KV cache");
        }
        range("attention.head_count", 0, MOST_HEADS, true); // an array may name layers without attention
        range("attention.head_count_kv", 0, MOST_HEADS, false);
        for (String key : Set.of("attention.key_length", "attention.value_length")) {
            range(key, 1, MOST_ELEMENTS, false);
            range(key + "_swa", 1, MOST_ELEMENTS, false);
        }
        for (String key : Set.of("rope.dimension_count", "rope.dimension_count_swa")) {
            range(key, 2, MOST_ELEMENTS, false);
            Value rotated = own(key);
            for (int i = 0; rotated != null && i < rotated.numbers().length; i++) {
                if (rotated.numbers()[i] % 2 != 0) {
                    throw refused("its " + prefix + key + " is " + rotated.numbers()[i]
                            + ": pairs are rotated, so it is even");
                }
            }
        }
        int layers = header.layers();
        for (int layer = 0; layer < layers; layer++) {
            long of = header.heads(layer);
            long kv = header.kvHeads(layer);
            if (kv > 0 && of % kv != 0 || kv > of) {
                throw refused("its " + prefix + "attention.head_count_kv of layer " + layer + ", " + kv
                        + ", does not divide the head_count, " + of);
            }
        }
        if (own("attention.key_length") == null && header.heads(0) > header.number("embedding_length")) {
            throw refused(
                    "its " + header.heads(0) + " heads share an embedding of " + header.number("embedding_length"));
        }
    }

    private long number(String key) {
        return own(key) == null ? 0 : header.number(key);
    }

    private void checkExperts() {
        range("expert_count", 0, MOST_EXPERTS, false);
        range("expert_used_count", 0, MOST_EXPERTS, false);
        range("expert_group_count", 0, MOST_EXPERTS, false);
        range("expert_group_used_count", 0, MOST_EXPERTS, false);
        long experts = number("expert_count");
        if (experts <= 1 && header.architecture().startsWith("hunyuan")) {
            return; // llama.cpp takes one expert for none there
        }
        Value each = own("expert_used_count");
        long used = each == null ? 0 : Arrays.stream(each.numbers()).max().orElse(0);
        long groups = number("expert_group_count");
        long groupsUsed = number("expert_group_used_count");
        if (used > experts || experts > 0 && used == 0) {
            throw refused("its " + prefix + "expert_used_count is " + used + " of " + experts + " experts");
        }
        if (groups > 0 && groups >= experts
                || groups > 1 && (experts % groups != 0 || groupsUsed == 0 || groupsUsed >= groups)) {
            throw refused("its " + prefix + "expert_group_count is " + groups + ", of which " + groupsUsed
                    + " are used, for " + experts + " experts");
        }
    }

    /** Of layers as most models have them: llama.cpp cuts the products into heads without asking whether they fit. */
    private void checkOrdinaryLayers() {
        if (!FULLY_ROTATED.contains(header.architecture()) && !PARTLY_ROTATED.contains(header.architecture())) {
            return;
        }
        for (int layer = 0; layer < header.layers(); layer++) {
            long heads = header.heads(layer);
            long key = header.headSize("attention.key_length", layer);
            long value = header.headSize("attention.value_length", layer);
            if (key != value) {
                throw refused("its keys have " + key + " elements and its values " + value + " in layer " + layer
                        + ", and its architecture has as many in both");
            }
            String block = "blk." + layer + ".";
            dimension(block + "attn_q.weight", 1, heads * key);
            dimension(block + "attn_k.weight", 1, header.kvHeads(layer) * key);
            dimension(block + "attn_v.weight", 1, header.kvHeads(layer) * value);
            dimension(block + "attn_output.weight", 0, heads * value);
        }
        long rotated = own("rope.dimension_count") == null ? -1 : header.number("rope.dimension_count");
        long key = header.headSize("attention.key_length", 0);
        if (rotated > key || rotated >= 0 && rotated != key && FULLY_ROTATED.contains(header.architecture())) {
            throw refused("its " + prefix + "rope.dimension_count is " + rotated + ", and its keys have " + key
                    + " elements");
        }
    }

    private void dimension(String name, int dimension, long expected) {
        Tensor tensor = header.tensors().get(name);
        if (tensor != null && (tensor.shape().length <= dimension || tensor.shape()[dimension] != expected)) {
            throw refused("its tensor " + name + " has "
                    + (tensor.shape().length <= dimension ? 1 : tensor.shape()[dimension]) + " along dimension "
                    + dimension + ", and its heads take " + expected);
        }
    }

    private void checkReals() {
        for (Map.Entry<String, Value> entry : header.metadata().entrySet()) {
            Value value = entry.getValue();
            if (!entry.getKey().startsWith(prefix) || !value.kind().isReal()) {
                continue;
            }
            boolean epsilon = entry.getKey().endsWith("_epsilon");
            boolean factor = entry.getKey().endsWith("rope.scaling.factor"); // 0 is as 1
            boolean positive = entry.getKey().contains("rope.freq_base");
            boolean sparsity = entry.getKey().endsWith("activation_sparsity_scale"); // -inf: nothing is cut off
            for (int i = 0; i < value.numbers().length; i++) {
                double x = value.real(i);
                if (sparsity && x == Double.NEGATIVE_INFINITY) {
                    continue;
                }
                if (!Double.isFinite(x) || (epsilon || factor) && x < 0 || positive && x <= 0) {
                    throw refused("its " + entry.getKey() + " is " + x + (positive ? ", not above 0" : ""));
                }
            }
        }
        for (String key :
                Set.of("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base")) {
            if (own(key) != null && !own(key).kind().isReal()) {
                throw refused("its " + prefix + key + " is no real number");
            }
        }
    }

    /** llama.cpp reads scores and types of as many tokens as there are words, whatever the length of those arrays. */
    private void checkVocabulary() {
        text("tokenizer.ggml.model", true);
        if (!header.hasVocabulary()) {
            return;
        }
        long words = array("tokenizer.ggml.tokens", Set.of(Kind.STRING), -1);
        if (words <= 0) {
            throw refused("its key tokenizer.ggml.tokens is missing or empty");
        }
        array("tokenizer.ggml.scores", Set.of(Kind.FLOAT32), words);
        array("tokenizer.ggml.token_type", Set.of(Kind.INT32, Kind.UINT32), words);
        if (header.words().hasTwins()) {
            throw refused("two of its tokenizer.ggml.tokens have the same text");
        }
        header.words().nameless().ifPresent(token -> {
            throw refused("its token " + token + " is a byte by its type, and its text is not as <0x0A>");
        });
        array("tokenizer.ggml.merges", Set.of(Kind.STRING), -1);
        array("tokenizer.ggml.precompiled_charsmap", Set.of(Kind.INT8, Kind.UINT8), -1);
    }

    /** Elements of an array; 0 where there is none. length: how many there must be, or -1. */
    private long array(String key, Set<Kind> kinds, long length) {
        Value value = header.metadata().get(key);
        if (value == null) {
            return 0;
        }
        if (!value.array() || !kinds.contains(value.kind())) {
            throw refused("its key " + key + " is no array of " + kinds);
        }
        if (length >= 0 && value.count() != length) {
            throw refused("its key " + key + " has " + value.count() + " elements for " + length + " tokens");
        }
        return value.count();
    }

    private void checkTensors() {
        for (Map.Entry<String, Tensor> entry : header.tensors().entrySet()) {
            Tensor tensor = entry.getValue();
            if (tensor.shape().length == 1
                    && !tensor.type().isFloat()
                    && !tensor.type().name().equals("i32")) {
                throw refused("its tensor " + entry.getKey() + " is a vector of "
                        + tensor.type().name() + ", and llama.cpp computes with vectors of floats");
            }
        }
    }
}
