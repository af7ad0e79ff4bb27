package dev.kvmerge.eval;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * What a run said of each token of the text. Index i is the token's place in the text; token 0 has no prediction.
 *
 * @param nll negative log-likelihood of token i given those before it, in nats; NaN where there is none
 * @param kl KL(full || this run) of the prediction of token i over the whole vocabulary, in nats; NaN where not
 *     compared
 * @param sameTop whether both thought the same token likeliest; meaningless where kl is NaN
 */
public record Trace(double[] nll, double[] kl, boolean[] sameTop) {
    static Trace empty(int tokens) {
        double[] nll = new double[tokens];
        double[] kl = new double[tokens];
        Arrays.fill(nll, Double.NaN);
        Arrays.fill(kl, Double.NaN);
        return new Trace(nll, kl, new boolean[tokens]);
    }

    /**
     * Perplexity of a range of tokens and its standard error, in llama-perplexity's arithmetic.
     *
     * @param standardError by the delta method from the standard error of the mean log-likelihood; NaN for fewer than
     *     two tokens
     */
    public record Perplexity(double value, double standardError, int tokens) {}

    /** Perplexity of the tokens [from, nll.length) that have a prediction. */
    public Perplexity perplexity(int from) {
        return perplexity(nll, from, nll.length);
    }

    /** Perplexity of nll[from, to), those that are NaN left out. */
    public static Perplexity perplexity(double[] nll, int from, int to) {
        double sum = 0;
        double squares = 0;
        int n = 0;
        for (int i = from; i < to; i++) {
            if (!Double.isNaN(nll[i])) {
                sum += nll[i];
                squares += nll[i] * nll[i];
                n++;
            }
        }
        double mean = sum / n;
        double variance = squares / n - mean * mean;
        double value = Math.exp(mean);
        return new Perplexity(value, n < 2 ? Double.NaN : Math.sqrt(Math.max(0, variance) / (n - 1)) * value, n);
    }

    /**
     * Divergence over a range of tokens.
     *
     * @param mean mean KL in nats
     * @param standardError of the mean
     * @param p99 99th percentile
     * @param topAgreement share of tokens whose likeliest prediction is the full cache's
     */
    public record Divergence(double mean, double standardError, double p99, double topAgreement) {}

    /** Divergence of the tokens [from, kl.length); null when none was compared. */
    public Divergence divergence(int from) {
        double[] compared = Arrays.stream(kl, from, kl.length)
                .filter(x -> !Double.isNaN(x))
                .sorted()
                .toArray();
        int n = compared.length;
        if (n == 0) {
            return null;
        }
        int same = 0;
        for (int i = from; i < kl.length; i++) {
            same += !Double.isNaN(kl[i]) && sameTop[i] ? 1 : 0;
        }
        double mean = Arrays.stream(compared).average().orElseThrow();
        double variance =
                Arrays.stream(compared).map(x -> (x - mean) * (x - mean)).sum() / Math.max(1, n - 1);
        double p99 = compared[Math.min(n - 1, (int) Math.ceil(0.99 * n) - 1)];
        return new Divergence(mean, Math.sqrt(variance / n), p99, (double) same / n);
    }

    /** Tokens a block of the paired comparison: longer than the stretch over which neighbours' errors hang together. */
    private static final int BLOCK = 64;

    /**
     * How one run differs from another on the same tokens, with standard errors from the means of stretches of 64
     * tokens, since neighbouring tokens are not independent.
     *
     * @param nll mean difference of the negative log-likelihoods, nats a token
     * @param kl mean difference of the divergences from the full cache, nats
     */
    public record Difference(double nll, double nllError, double kl, double klError) {}

    /** This run minus another, over the tokens [from, n); null with fewer than two whole stretches that both have. */
    public Difference minus(Trace other, int from) {
        double[] likelihood = stretches(nll, other.nll, from, nll.length);
        double[] divergence = stretches(kl, other.kl, from, kl.length);
        if (likelihood.length < 2 || divergence.length < 2) {
            return null;
        }
        return new Difference(mean(likelihood), error(likelihood), mean(divergence), error(divergence));
    }

    /** By how much one perplexity is above another, in percent, with the standard error of that. */
    public record Above(double percent, double error) {}

    /**
     * The perplexity of a over that of b, on the tokens [from, to) that both have, with an error as in
     * {@link Difference}; null with fewer than two whole stretches of 64.
     */
    public static Above above(double[] a, double[] b, int from, int to) {
        int end = Math.min(to, Math.min(a.length, b.length));
        double[] more = stretches(a, b, from, end);
        if (more.length < 2) {
            return null;
        }
        double all = IntStream.range(from, end)
                .mapToDouble(i -> a[i] - b[i])
                .average()
                .orElseThrow();
        return new Above(100 * Math.expm1(all), 100 * Math.exp(all) * error(more));
    }

    /** Means of a - b over whole stretches without NaN, of the tokens [from, to) that both have. */
    private static double[] stretches(double[] a, double[] b, int from, int to) {
        int end = Math.min(to, Math.min(a.length, b.length));
        double[] means = new double[Math.max(0, (end - from) / BLOCK)];
        for (int i = 0; i < means.length * BLOCK; i++) {
            means[i / BLOCK] += (a[from + i] - b[from + i]) / BLOCK;
        }
        return Arrays.stream(means).filter(x -> !Double.isNaN(x)).toArray();
    }

    private static double mean(double[] x) {
        return Arrays.stream(x).average().orElseThrow();
    }

    private static double error(double[] x) {
        double mean = mean(x);
        double variance = Arrays.stream(x).map(v -> (v - mean) * (v - mean)).sum() / (x.length - 1);
        return Math.sqrt(variance / x.length);
    }
}
