package dev.kvmerge;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.Set;

/**
 * Writes tiny models with random weights in the GGUF format (version 3), to try shapes and rotations on; most of them
 * without a vocabulary.
 */
public final class TinyGguf {
    /** Tokens of the vocabulary that these models do not have words for. */
    public static final int VOCABULARY = 96;

    private static final int LAYERS = 2;
    private static final int EMBEDDING = 64;
    private static final int FEED_FORWARD = 96;
    private static final int UINT32 = 4;
    private static final int INT32 = 5;
    private static final int FLOAT32 = 6;
    private static final int BOOL = 7;
    private static final int ARRAY = 9;
    private static final int LATENT = 24; // of keys and values that are made of a shorter vector
    private static final int STRING = 8;

    /**
     * A geometry.
     *
     * @param architecture "llama" rotates neighbouring pairs, "qwen2" halves (NEOX); "gemma2" and "gemma3" have sliding
     *     windows, and gemma2 a soft cap; of "plm" and "minicpm3" a part of a key alone is rotated; the second layer of
     *     "deci" has twice the KV heads
     * @param scaling "none", "linear", "yarn" or "longrope", by 4
     * @param rotated rotated dimensions of a head
     * @param factors whether frequencies have factors, as Llama 3.1's
     * @param window positions of the sliding windows; 0 for none
     * @param pattern of each so many layers, the last has no window; 0: all have
     */
    public record Geometry(
            String architecture,
            int heads,
            int kvHeads,
            int headSize,
            float base,
            String scaling,
            int rotated,
            boolean factors,
            int window,
            int pattern) {
        /** Without sliding windows. */
        public Geometry(
                String architecture,
                int heads,
                int kvHeads,
                int headSize,
                float base,
                String scaling,
                int rotated,
                boolean factors) {
            this(architecture, heads, kvHeads, headSize, base, scaling, rotated, factors, 0, 0);
        }
    }

    private final ByteArrayOutputStream metadata = new ByteArrayOutputStream();
    private final ByteArrayOutputStream infos = new ByteArrayOutputStream();
    private final List<float[]> tensors = new ArrayList<>();
    private final Random random = new Random(1);
    private int keys;
    private long offset;
    private final Set<String> zero;
    private int vocabulary = VOCABULARY;

    private TinyGguf(Set<String> zero) {
        this.zero = zero;
    }

    /** Writes a model with words to the file that is named: bin/test-examples runs it where the small model is slow. */
    static void main(String[] args) {
        writeWords(Path.of(args[0]), new Geometry("llama", 4, 2, 16, 10000, "none", 16, false));
    }

    /** Writes a model whose tokens attend to those after them, too. */
    public static Path writeEncoder(Path file, Geometry g) {
        TinyGguf out = new TinyGguf(Set.of());
        out.truth(g.architecture() + ".attention.causal", false);
        return write(file, g, out);
    }

    /**
     * Writes a model with words: tokens of every byte, small letters, and the names of ChatML; a text begins with BOS.
     */
    public static Path writeWords(Path file, Geometry g) {
        TinyGguf out = new TinyGguf(Set.of());
        List<String> words = new ArrayList<>(List.of("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"));
        int special = words.size();
        for (int b = 0; b < 256; b++) {
            words.add(String.format("<0x%02X>", b));
        }
        for (char c = 'a'; c <= 'z'; c++) {
            words.add(String.valueOf(c));
        }
        out.vocabulary = words.size();
        out.text("tokenizer.ggml.model", "llama");
        out.array("tokenizer.ggml.tokens", STRING, words.size());
        words.forEach(word -> string(out.metadata, word));
        out.array("tokenizer.ggml.scores", FLOAT32, words.size());
        words.forEach(word -> out.metadata.writeBytes(little(4).putFloat(0).array()));
        out.array("tokenizer.ggml.token_type", INT32, words.size());
        for (int i = 0; i < words.size(); i++) {
            int type = i == 0 ? 2 : i < special ? 3 : i < special + 256 ? 6 : 1; // unknown, control, byte, normal
            out.metadata.writeBytes(little(4).putInt(type).array());
        }
        out.integer("tokenizer.ggml.bos_token_id", 1);
        out.integer("tokenizer.ggml.eos_token_id", 4);
        out.truth("tokenizer.ggml.add_bos_token", true);
        out.truth("tokenizer.ggml.add_space_prefix", false);
        return write(file, g, out);
    }

    private void array(String key, int type, int n) {
        key(key, ARRAY);
        metadata.writeBytes(little(4).putInt(type).array());
        metadata.writeBytes(little(8).putLong(n).array());
    }

    /** Writes a model. */
    public static Path write(Path file, Geometry g) {
        return write(file, g, Set.of());
    }

    /** As above, with tensors that are zero. */
    public static Path write(Path file, Geometry g, Set<String> zero) {
        return write(file, g, new TinyGguf(zero));
    }

    private static Path write(Path file, Geometry g, TinyGguf out) {
        String a = g.architecture();
        boolean latent = a.equals("plm") || a.equals("minicpm3");
        boolean gemma = a.startsWith("gemma");
        out.text("general.architecture", a);
        if (out.vocabulary == VOCABULARY) {
            out.text("tokenizer.ggml.model", "none");
        }
        out.integer(a + ".vocab_size", out.vocabulary);
        out.integer(a + ".context_length", 512);
        out.integer(a + ".embedding_length", EMBEDDING);
        out.integer(a + ".block_count", LAYERS);
        out.integer(a + ".feed_forward_length", FEED_FORWARD);
        out.integer(a + ".attention.head_count", g.heads());
        if (a.equals("deci")) {
            out.integers(a + ".attention.head_count_kv", g.kvHeads(), 2 * g.kvHeads());
        } else {
            out.integer(a + ".attention.head_count_kv", g.kvHeads());
        }
        if (latent) {
            out.integer(a + ".attention.kv_lora_rank", LATENT);
            out.integer(a + ".attention.q_lora_rank", LATENT);
        }
        out.integer(a + ".attention.key_length", g.headSize());
        out.integer(a + ".attention.value_length", g.headSize());
        out.integer(a + ".rope.dimension_count", g.rotated());
        out.real(a + ".attention.layer_norm_rms_epsilon", 1e-5f);
        out.real(a + ".rope.freq_base", g.base());
        if (!g.scaling().equals("none")) {
            out.text(a + ".rope.scaling.type", g.scaling());
            out.real(a + ".rope.scaling.factor", 4);
            out.integer(a + ".rope.scaling.original_context_length", g.scaling().equals("longrope") ? 300 : 128);
        }
        if (g.window() > 0) {
            out.integer(a + ".attention.sliding_window", g.window());
            out.integer(a + ".attention.sliding_window_pattern", g.pattern());
        }
        int q = g.heads() * g.headSize();
        out.tensor("token_embd.weight", EMBEDDING, out.vocabulary);
        out.tensor("output_norm.weight", EMBEDDING);
        if (!a.equals("plm") && !a.equals("gemma2")) { // there, they are the input's
            out.tensor("output.weight", EMBEDDING, out.vocabulary);
        }
        if (g.scaling().equals("longrope")) {
            out.tensor("rope_factors_long.weight", g.rotated() / 2);
            out.tensor("rope_factors_short.weight", g.rotated() / 2);
        }
        if (g.factors()) {
            out.tensor("rope_freqs.weight", g.rotated() / 2);
        }
        for (int l = 0; l < LAYERS; l++) {
            String b = "blk." + l + ".";
            out.tensor(b + "attn_norm.weight", EMBEDDING);
            if (latent) {
                out.latent(b, g);
            } else {
                int kv = g.kvHeads() * g.headSize() * (a.equals("deci") ? l + 1 : 1);
                out.tensor(b + "attn_q.weight", EMBEDDING, q);
                out.tensor(b + "attn_k.weight", EMBEDDING, kv);
                out.tensor(b + "attn_v.weight", EMBEDDING, kv);
            }
            out.tensor(b + "attn_output.weight", q, EMBEDDING);
            if (a.equals("qwen2")) {
                out.tensor(b + "attn_q.bias", q);
                out.tensor(b + "attn_k.bias", g.kvHeads() * g.headSize());
                out.tensor(b + "attn_v.bias", g.kvHeads() * g.headSize());
            }
            if (a.equals("gemma3")) {
                out.tensor(b + "attn_q_norm.weight", g.headSize());
                out.tensor(b + "attn_k_norm.weight", g.headSize());
            }
            if (gemma) {
                out.tensor(b + "post_attention_norm.weight", EMBEDDING);
                out.tensor(b + "post_ffw_norm.weight", EMBEDDING);
            }
            out.tensor(b + "ffn_norm.weight", EMBEDDING);
            if (!a.equals("plm")) {
                out.tensor(b + "ffn_gate.weight", EMBEDDING, FEED_FORWARD);
            }
            out.tensor(b + "ffn_up.weight", EMBEDDING, FEED_FORWARD);
            out.tensor(b + "ffn_down.weight", FEED_FORWARD, EMBEDDING);
        }
        try {
            return Files.write(file, out.bytes());
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** A short vector for the keys and values of all heads, and one rotated part of the keys for all. */
    private void latent(String b, Geometry g) {
        int still = g.headSize() - g.rotated();
        if (g.architecture().equals("minicpm3")) {
            tensor(b + "attn_q_a.weight", EMBEDDING, LATENT);
            tensor(b + "attn_q_a_norm.weight", LATENT);
            tensor(b + "attn_q_b.weight", LATENT, g.heads() * g.headSize());
        } else {
            tensor(b + "attn_q.weight", EMBEDDING, g.heads() * g.headSize());
        }
        tensor(b + "attn_kv_a_mqa.weight", EMBEDDING, LATENT + g.rotated());
        tensor(b + "attn_kv_a_norm.weight", LATENT);
        tensor(b + "attn_kv_b.weight", LATENT, g.heads() * (still + g.headSize()));
    }

    private static ByteBuffer little(int n) {
        return ByteBuffer.allocate(n).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static void string(ByteArrayOutputStream to, String s) {
        byte[] bytes = s.getBytes(StandardCharsets.UTF_8);
        to.writeBytes(little(8).putLong(bytes.length).array());
        to.writeBytes(bytes);
    }

    private void key(String key, int type) {
        keys++;
        string(metadata, key);
        metadata.writeBytes(little(4).putInt(type).array());
    }

    private void text(String key, String value) {
        key(key, STRING);
        string(metadata, value);
    }

    private void integer(String key, int value) {
        key(key, UINT32);
        metadata.writeBytes(little(4).putInt(value).array());
    }

    private void integers(String key, int... values) {
        array(key, UINT32, values.length);
        for (int value : values) {
            metadata.writeBytes(little(4).putInt(value).array());
        }
    }

    private void truth(String key, boolean value) {
        key(key, BOOL);
        metadata.write(value ? 1 : 0);
    }

    private void real(String key, float value) {
        key(key, FLOAT32);
        metadata.writeBytes(little(4).putFloat(value).array());
    }

    /** F32; norms and factors are near 1, the rest scaled so that activations stay so. */
    private void tensor(String name, int... shape) {
        int n = 1;
        string(infos, name);
        infos.writeBytes(little(4).putInt(shape.length).array());
        for (int size : shape) {
            infos.writeBytes(little(8).putLong(size).array());
            n *= size;
        }
        infos.writeBytes(little(4).putInt(0).array()); // F32
        infos.writeBytes(little(8).putLong(offset).array());
        float[] x = new float[n];
        boolean nearOne = name.contains("norm") || name.startsWith("rope_f");
        for (int i = 0; i < n && !zero.contains(name); i++) {
            x[i] = nearOne
                    ? 1 + 2 * random.nextFloat()
                    : (float) (random.nextGaussian() / Math.sqrt(shape.length > 1 ? shape[0] : 4));
        }
        tensors.add(x);
        offset += (4L * n + 31) / 32 * 32;
    }

    private byte[] bytes() {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        all.writeBytes("GGUF".getBytes(StandardCharsets.US_ASCII));
        all.writeBytes(little(4).putInt(3).array());
        all.writeBytes(little(16).putLong(tensors.size()).putLong(keys).array());
        all.writeBytes(metadata.toByteArray());
        all.writeBytes(infos.toByteArray());
        all.writeBytes(new byte[(32 - all.size() % 32) % 32]);
        for (float[] x : tensors) {
            ByteBuffer data = little((4 * x.length + 31) / 32 * 32);
            data.asFloatBuffer().put(x);
            all.writeBytes(data.array());
        }
        return all.toByteArray();
    }
}
