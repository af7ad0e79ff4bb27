package dev.kvmerge.eval;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Scorer;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Strategy;
import java.util.Arrays;
import java.util.function.BooleanSupplier;

/** The likelihood of a text longer than the model's positions, token by token, through one cache. */
public final class Endless {
    private Endless() {}

    /** Is told how far it is. */
    @FunctionalInterface
    public interface Listener {
        /** Tokens decoded, and the perplexity of the last few thousand. */
        void at(int tokens, double perplexity);
    }

    private static final int RECENT = 2048;

    /**
     * Reads a text.
     *
     * @param strategy of the cache; in the full cache, positions grow with the text
     * @return negative log-likelihood of each token, nats; NaN for the first
     * @throws Experiment.Cancelled if asked to stop
     */
    public static double[] read(
            Model model,
            int[] tokens,
            Strategy strategy,
            CacheOptions options,
            Listener listener,
            BooleanSupplier cancelled) {
        double[] nll = new double[tokens.length];
        nll[0] = Double.NaN;
        Scorer scorer = new Scorer(model.vocabularySize(), options.compute().threads());
        try (CompressedContext context = new CompressedContext(model, strategy, options)) {
            for (int at = 0; at < tokens.length; at += options.block()) {
                if (cancelled.getAsBoolean()) {
                    throw new Experiment.Cancelled();
                }
                int end = Math.min(tokens.length, at + options.block());
                context.decode(Arrays.copyOfRange(tokens, at, end));
                int rows = Math.min(end, tokens.length - 1) - at;
                if (rows > 0) {
                    double[] part = scorer.negativeLogLikelihood(
                            context.logits(), Arrays.copyOfRange(tokens, at + 1, at + 1 + rows));
                    System.arraycopy(part, 0, nll, at + 1, rows);
                }
                listener.at(
                        end,
                        Trace.perplexity(nll, Math.max(1, end - RECENT), Math.min(end + 1, tokens.length))
                                .value());
            }
        }
        return nll;
    }
}
