package dev.kvmerge.kernels;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.llama.NativeLibrary;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** What rows of logits say about the tokens that came: likelihood, and divergence from another model's rows. */
public final class Scorer {
    private static final int MOST_TOKENS = 1 << 28; // a packed row of so many has an int of bytes

    private final int vocabulary;
    private final int threads;

    public Scorer(int vocabulary, int threads) {
        NativeLibrary.require();
        if (vocabulary <= 0 || vocabulary > MOST_TOKENS) {
            throw new IllegalArgumentException("a vocabulary of " + vocabulary + " tokens; it has 1 to " + MOST_TOKENS);
        }
        this.vocabulary = vocabulary;
        this.threads = threads;
    }

    /**
     * Negative log-likelihood of each row's target, in nats, in the arithmetic of llama-perplexity.
     *
     * @param logits F32 [targets.length][vocabulary]
     * @throws KvmergeException if a row has NaN or a target is outside the vocabulary
     */
    public double[] negativeLogLikelihood(MemorySegment logits, int[] targets) {
        checkSize(logits, targets.length, 4L * vocabulary);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment nll = arena.allocate(ValueLayout.JAVA_DOUBLE, Math.max(1, targets.length));
            Kvmerge.check(Kvmerge_h.kvmerge_score(
                    logits,
                    targets.length,
                    vocabulary,
                    arena.allocateFrom(ValueLayout.JAVA_INT, targets),
                    threads,
                    nll));
            return nll.asSlice(0, 8L * targets.length).toArray(ValueLayout.JAVA_DOUBLE);
        }
    }

    /** Bytes of a packed row: 16 bits a token and two floats. */
    public int packedRowBytes() {
        return (int) Kvmerge_h.kvmerge_packed_row_bytes(vocabulary);
    }

    /** Packs the log probabilities of rows of logits: packed takes rows * {@link #packedRowBytes()}. */
    public void pack(MemorySegment logits, int rows, MemorySegment packed) {
        checkSize(logits, rows, 4L * vocabulary);
        checkSize(packed, rows, packedRowBytes());
        Kvmerge.check(Kvmerge_h.kvmerge_pack_log_probs(logits, rows, vocabulary, threads, packed));
    }

    /**
     * How rows of logits differ from packed ones.
     *
     * @param kl KL(packed || logits) over the whole vocabulary, in nats
     * @param sameTop whether both agree on the likeliest token
     */
    public record Divergence(double[] kl, boolean[] sameTop) {}

    /** Compares rows of logits with packed ones. */
    public Divergence divergence(MemorySegment packed, MemorySegment logits, int rows) {
        checkSize(logits, rows, 4L * vocabulary);
        checkSize(packed, rows, packedRowBytes());
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment kl = arena.allocate(ValueLayout.JAVA_DOUBLE, Math.max(1, rows));
            MemorySegment same = arena.allocate(Math.max(1, rows));
            Kvmerge.check(Kvmerge_h.kvmerge_kl_divergence(packed, logits, rows, vocabulary, threads, kl, same));
            boolean[] sameTop = new boolean[rows];
            for (int i = 0; i < rows; i++) {
                sameTop[i] = same.get(ValueLayout.JAVA_BYTE, i) != 0;
            }
            return new Divergence(kl.asSlice(0, 8L * rows).toArray(ValueLayout.JAVA_DOUBLE), sameTop);
        }
    }

    /** Entropy of each row of probabilities over its positive entries, divided by the log of their number. */
    public static float[] rowEntropy(float[][] rows) {
        NativeLibrary.require();
        int n = rows.length == 0 ? 1 : rows[0].length;
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment p = arena.allocate(ValueLayout.JAVA_FLOAT, Math.max(1L, (long) rows.length * n));
            for (int i = 0; i < rows.length; i++) {
                if (rows[i].length != n) {
                    throw new IllegalArgumentException("rows of different lengths");
                }
                MemorySegment.copy(rows[i], 0, p, ValueLayout.JAVA_FLOAT, 4L * n * i, n);
            }
            MemorySegment entropy = arena.allocate(ValueLayout.JAVA_FLOAT, Math.max(1, rows.length));
            Kvmerge.check(Kvmerge_h.kvmerge_row_entropy(p, rows.length, n, entropy));
            return entropy.asSlice(0, 4L * rows.length).toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    private static void checkSize(MemorySegment segment, int rows, long rowBytes) {
        if (rows < 0 || segment.byteSize() / rowBytes < rows) {
            throw new IllegalArgumentException("a buffer of " + segment.byteSize() + " bytes where " + rows
                    + " rows of " + rowBytes + " are needed");
        }
    }
}
