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

/** Writes tiny models with random weights and no vocabulary in the GGUF format (version 3), to try shapes and rotations on. */
public final class TinyGguf {
    /** Tokens of the vocabulary that these models do not have words for. */
    public static final int VOCABULARY = 96;

    private static final int LAYERS = 2;
    private static final int EMBEDDING = 64;
    private static final int FEED_FORWARD = 96;
    private static final int UINT32 = 4;
    private static final int FLOAT32 = 6;
    private static final int STRING = 8;

    /**
     * A geometry.
     *
     * @param architecture "llama" rotates neighbouring pairs, "qwen2" halves (NEOX); "gemma3" has sliding windows
     * @param scaling "none", "linear" or "yarn", by 4
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

    private TinyGguf(Set<String> zero) {
        this.zero = zero;
    }

    /** Writes a model. */
    public static Path write(Path file, Geometry g) {
        return write(file, g, Set.of());
    }

    /** As above, with tensors that are zero. */
    public static Path write(Path file, Geometry g, Set<String> zero) {
        TinyGguf out = new TinyGguf(zero);
        String a = g.architecture();
        out.text("general.architecture", a);
        out.text("tokenizer.ggml.model", "none");
        out.integer(a + ".vocab_size", VOCABULARY);
        out.integer(a + ".context_length", 512);
        out.integer(a + ".embedding_length", EMBEDDING);
        out.integer(a + ".block_count", LAYERS);
        out.integer(a + ".feed_forward_length", FEED_FORWARD);
        out.integer(a + ".attention.head_count", g.heads());
        out.integer(a + ".attention.head_count_kv", g.kvHeads());
        out.integer(a + ".attention.key_length", g.headSize());
        out.integer(a + ".attention.value_length", g.headSize());
        out.integer(a + ".rope.dimension_count", g.rotated());
        out.real(a + ".attention.layer_norm_rms_epsilon", 1e-5f);
        out.real(a + ".rope.freq_base", g.base());
        if (!g.scaling().equals("none")) {
            out.text(a + ".rope.scaling.type", g.scaling());
            out.real(a + ".rope.scaling.factor", 4);
            out.integer(a + ".rope.scaling.original_context_length", 128);
        }
        if (g.window() > 0) {
            out.integer(a + ".attention.sliding_window", g.window());
            out.integer(a + ".attention.sliding_window_pattern", g.pattern());
        }
        int q = g.heads() * g.headSize();
        int kv = g.kvHeads() * g.headSize();
        out.tensor("token_embd.weight", EMBEDDING, VOCABULARY);
        out.tensor("output_norm.weight", EMBEDDING);
        out.tensor("output.weight", EMBEDDING, VOCABULARY);
        if (g.factors()) {
            out.tensor("rope_freqs.weight", g.rotated() / 2);
        }
        for (int l = 0; l < LAYERS; l++) {
            String b = "blk." + l + ".";
            out.tensor(b + "attn_norm.weight", EMBEDDING);
            out.tensor(b + "attn_q.weight", EMBEDDING, q);
            out.tensor(b + "attn_k.weight", EMBEDDING, kv);
            out.tensor(b + "attn_v.weight", EMBEDDING, kv);
            out.tensor(b + "attn_output.weight", q, EMBEDDING);
            if (a.equals("qwen2")) {
                out.tensor(b + "attn_q.bias", q);
                out.tensor(b + "attn_k.bias", kv);
                out.tensor(b + "attn_v.bias", kv);
            }
            if (a.equals("gemma3")) {
                out.tensor(b + "attn_q_norm.weight", g.headSize());
                out.tensor(b + "attn_k_norm.weight", g.headSize());
                out.tensor(b + "post_attention_norm.weight", EMBEDDING);
                out.tensor(b + "post_ffw_norm.weight", EMBEDDING);
            }
            out.tensor(b + "ffn_norm.weight", EMBEDDING);
            out.tensor(b + "ffn_gate.weight", EMBEDDING, FEED_FORWARD);
            out.tensor(b + "ffn_up.weight", EMBEDDING, FEED_FORWARD);
            out.tensor(b + "ffn_down.weight", FEED_FORWARD, EMBEDDING);
        }
        try {
            return Files.write(file, out.bytes());
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
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
        boolean nearOne = name.contains("norm") || name.contains("rope_freqs");
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
