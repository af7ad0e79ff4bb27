package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Scorer;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Strategy;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.function.IntConsumer;

/**
 * Perplexity the way llama.cpp's llama-perplexity computes it, to the same digits at the same options: the text in
 * chunks of a context, each from an empty cache, the second half of each chunk scored.
 */
public final class ChunkedPerplexity {
    private static final int MOST_SEQUENCES = 256; // llama.cpp's LLAMA_MAX_SEQ

    /**
     * llama-perplexity's options.
     *
     * @param chunk tokens a chunk (-c)
     * @param batch most tokens a decode (-b); several chunks go side by side when they fit
     * @param chunks most chunks, or negative for all (--chunks)
     * @param compute how llama.cpp computes
     */
    public record Options(int chunk, int batch, int chunks, ComputeSettings compute) {
        public Options {
            if (chunk < 4) {
                throw new KvmergeException.Usage("a chunk (-c) must have at least 4 tokens, not " + chunk);
            }
            if (batch <= 0) {
                throw new KvmergeException.Usage("the batch (-b) must be positive, not " + batch);
            }
            if (batch / chunk > MOST_SEQUENCES) {
                throw new KvmergeException.Usage("a batch (-b) of " + batch + " holds " + batch / chunk
                        + " chunks of " + chunk + " tokens (-c) side by side, and llama.cpp takes " + MOST_SEQUENCES
                        + ": use -b " + (long) MOST_SEQUENCES * chunk + " or less, or a larger -c");
            }
            batch = Math.min(batch, Math.max(1, batch / chunk) * chunk); // whole chunks, or a part of one
            if (chunks == 0) {
                throw new KvmergeException.Usage("--chunks must be positive, or -1 for all");
            }
        }
    }

    /** Is told the perplexity of the chunks so far, after each. */
    @FunctionalInterface
    public interface Listener {
        void chunk(int number, double perplexity);
    }

    private final Model model;
    private final Options options;
    private final Scorer scorer;
    private double sum;
    private double squares;
    private int count;

    public ChunkedPerplexity(Model model, Options options) {
        this.model = model;
        this.options = options;
        this.scorer = new Scorer(model.vocabularySize(), options.compute().threads());
    }

    /**
     * The final estimate.
     *
     * @param perplexity of all scored tokens
     * @param error its standard error
     */
    public record Estimate(double perplexity, double error) {}

    /** Chunks that a text of so many tokens gives. */
    public int chunksOf(int tokens) {
        if (tokens < 2L * options.chunk()) {
            throw new KvmergeException.Usage(
                    "the text has " + tokens + " tokens; perplexity with a context of " + options.chunk()
                            + " needs at least " + 2L * options.chunk() + ": use a longer text or a smaller -c");
        }
        int most = tokens / options.chunk();
        return options.chunks() < 0 ? most : Math.min(options.chunks(), most);
    }

    /** Through the full cache: the same batches as llama-perplexity, chunks side by side as sequences. */
    public Estimate full(int[] tokens, Listener listener) {
        int n = options.chunk();
        int chunks = chunksOf(tokens.length);
        int side = Math.clamp(options.batch() / n, 1, ContextOptions.MOST_SEQUENCES);
        int batch = Math.min(options.batch(), side * n);
        int first = n / 2;
        ContextOptions contextOptions = new ContextOptions(side * n, batch, side, options.compute());
        try (Context context = new Context(model, contextOptions, null)) {
            for (int i = 0; i < chunks; i += side) {
                context.clear();
                int together = Math.min(side, chunks - i);
                int start = i * n;
                int firstOfBatch = i;
                for (int from = 0; from < n; from += Math.min(batch, n)) {
                    int length = Math.min(Math.min(batch, n), n - from);
                    int offset = from;
                    context.decode(together * length, k -> {
                        int sequence = k / length;
                        int position = offset + k % length;
                        int token = position == 0 && model.addsBos()
                                ? model.bos()
                                : tokens[start + sequence * n + position];
                        return new Context.Item(token, position, sequence, position >= first);
                    });
                    int scoredFrom = Math.max(first, from);
                    int rows = from + length - scoredFrom;
                    if (rows > 0) {
                        MemorySegment logits = context.logits();
                        for (int s = 0; s < together; s++) {
                            long row = 4L * model.vocabularySize();
                            score(
                                    logits.asSlice(s * rows * row, rows * row),
                                    tokens,
                                    start + s * n + scoredFrom,
                                    Math.min(rows, n - 1 - scoredFrom));
                            if (from + length == n) {
                                listener.chunk(firstOfBatch + s + 1, Math.exp(sum / count));
                            }
                        }
                    }
                }
            }
        }
        return estimate();
    }

    /** Through a compressed cache: each chunk streamed into it block by block, the same tokens scored. */
    public Estimate compressed(
            int[] tokens, Strategy strategy, int cells, int block, Listener listener, IntConsumer progress) {
        int n = options.chunk();
        Experiment.checkBudget(strategy, cells, block, n);
        int chunks = chunksOf(tokens.length);
        int first = n / 2;
        long row = 4L * model.vocabularySize();
        CacheOptions cache = CacheOptions.of(cells, block).with(options.compute());
        for (int i = 0; i < chunks; i++) {
            try (CompressedContext context = new CompressedContext(model, strategy, cache)) {
                for (int from = 0; from < n; from += block) {
                    int to = Math.min(n, from + block);
                    int[] part = Arrays.copyOfRange(tokens, i * n + from, i * n + to);
                    if (from == 0 && model.addsBos()) {
                        part[0] = model.bos();
                    }
                    context.decode(part);
                    int scoredFrom = Math.max(first, from);
                    int rows = Math.min(to, n - 1) - scoredFrom;
                    if (rows > 0) {
                        score(
                                context.logits().asSlice((scoredFrom - from) * row, rows * row),
                                tokens,
                                i * n + scoredFrom,
                                rows);
                    }
                    progress.accept(i * n + to);
                }
            }
            listener.chunk(i + 1, Math.exp(sum / count));
        }
        return estimate();
    }

    /** Row r of the logits stands at token `at` + r and predicts the one after. */
    private void score(MemorySegment logits, int[] tokens, int at, int rows) {
        for (double nll : scorer.negativeLogLikelihood(logits, Arrays.copyOfRange(tokens, at + 1, at + 1 + rows))) {
            sum += nll;
            squares += nll * nll;
            count++;
        }
    }

    private Estimate estimate() {
        double mean = sum / count;
        double variance = squares / count - mean * mean;
        double perplexity = Math.exp(mean);
        return new Estimate(perplexity, variance > 0 ? Math.sqrt(variance / (count - 1)) * perplexity : Double.NaN);
    }
}
