package dev.kvmerge.report;

import dev.kvmerge.eval.Trace;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/** llama-perplexity's --kl-divergence report, line by line: the full cache is its base, the compressed one its Q. */
public final class KlStatistics {
    private static final double[] KLD_PERCENTILES = {.999, .99, .95, .9};
    private static final double[] KLD_LOW_PERCENTILES = {.1, .05, .01, .001};
    private static final double[] P_PERCENTILES = {.999, .99, .95, .9, .75};
    private static final double[] P_LOW_PERCENTILES = {.25, .1, .05, .01, .001};

    private KlStatistics() {}

    /**
     * The report.
     *
     * @param from first token
     * @throws IllegalArgumentException if fewer than two tokens were compared
     */
    public static String of(Trace base, Trace q, int from) {
        List<double[]> rows = new ArrayList<>();
        int same = 0;
        for (int i = from; i < q.nll().length; i++) {
            if (!Double.isNaN(q.kl()[i]) && !Double.isNaN(q.nll()[i]) && !Double.isNaN(base.nll()[i])) {
                rows.add(new double[] {
                    q.nll()[i], base.nll()[i], q.kl()[i], Math.exp(-q.nll()[i]) - Math.exp(-base.nll()[i])
                });
                same += q.sameTop()[i] ? 1 : 0;
            }
        }
        if (rows.size() < 2) {
            throw new IllegalArgumentException("fewer than two tokens to compare");
        }
        double[] nll = column(rows, 0);
        double[] nllBase = column(rows, 1);
        double[] kld = column(rows, 2);
        double[] dp = column(rows, 3);
        int n = rows.size();
        StringBuilder text = new StringBuilder("====== Perplexity statistics ======\n");
        double[] log = meanAndError(nll);
        double[] logBase = meanAndError(nllBase);
        double ppl = Math.exp(log[0]);
        double pplBase = Math.exp(logBase[0]);
        line(text, "Mean PPL(Q)                   : %10.6f \u00b1 %10.6f", ppl, ppl * log[1]);
        line(text, "Mean PPL(base)                : %10.6f \u00b1 %10.6f", pplBase, pplBase * logBase[1]);
        double covariance = covariance(nll, nllBase);
        line(text, "Cor(ln(PPL(Q)), ln(PPL(base))): %6.2f%%", 100 * covariance / (log[1] * logBase[1]));
        double ratio = log[0] - logBase[0];
        double ratioError = Math.sqrt(log[1] * log[1] + logBase[1] * logBase[1] - 2 * covariance);
        line(text, "Mean ln(PPL(Q)/PPL(base))     : %10.6f \u00b1 %10.6f", ratio, ratioError);
        line(
                text,
                "Mean PPL(Q)/PPL(base)         : %10.6f \u00b1 %10.6f",
                Math.exp(ratio),
                Math.exp(ratio) * ratioError);
        double difference = Math.sqrt(Math.max(
                0, Math.pow(ppl * log[1], 2) + Math.pow(pplBase * logBase[1], 2) - 2 * ppl * pplBase * covariance));
        line(text, "Mean PPL(Q)-PPL(base)         : %10.6f \u00b1 %10.6f", ppl - pplBase, difference);
        text.append("\n====== KL divergence statistics ======\n");
        double[] mean = meanAndError(kld);
        Arrays.sort(kld);
        line(text, "Mean    KLD: %10.6f \u00b1 %10.6f", mean[0], mean[1]);
        line(text, "Maximum KLD: %10.6f", kld[n - 1]);
        for (double f : KLD_PERCENTILES) {
            line(text, "%4.1f%%   KLD: %10.6f", 100 * f, percentile(kld, f));
        }
        line(text, "Median  KLD: %10.6f", percentile(kld, .5));
        for (double f : KLD_LOW_PERCENTILES) {
            line(text, "%4.1f%%   KLD: %10.6f", 100 * f, percentile(kld, f));
        }
        line(text, "Minimum KLD: %10.6f", kld[0]);
        text.append("\n====== Token probability statistics ======\n");
        double[] shift = meanAndError(dp);
        double[] squares = meanAndError(Arrays.stream(dp).map(x -> x * x).toArray());
        Arrays.sort(dp);
        line(text, "Mean    \u0394p: %6.3f \u00b1 %5.3f %%", 100 * shift[0], 100 * shift[1]);
        line(text, "Maximum \u0394p: %6.3f%%", 100 * dp[n - 1]);
        for (double f : P_PERCENTILES) {
            line(text, "%4.1f%%   \u0394p: %6.3f%%", 100 * f, 100 * percentile(dp, f));
        }
        line(text, "Median  \u0394p: %6.3f%%", 100 * percentile(dp, .5));
        for (double f : P_LOW_PERCENTILES) {
            line(text, "%4.1f%%   \u0394p: %6.3f%%", 100 * f, 100 * percentile(dp, f));
        }
        line(text, "Minimum \u0394p: %6.3f%%", 100 * dp[0]);
        double rms = Math.sqrt(squares[0]);
        line(text, "RMS \u0394p    : %6.3f \u00b1 %5.3f %%", 100 * rms, rms > 0 ? 100 * 0.5 / rms * squares[1] : 0);
        double top = (double) same / n;
        line(text, "Same top p: %6.3f \u00b1 %5.3f %%", 100 * top, 100 * Math.sqrt(top * (1 - top) / (n - 1)));
        return text.toString();
    }

    private static void line(StringBuilder text, String format, Object... values) {
        text.append(String.format(Locale.ROOT, format, values)).append('\n');
    }

    private static double[] column(List<double[]> rows, int column) {
        return rows.stream().mapToDouble(r -> r[column]).toArray();
    }

    /** Mean, and its standard error. */
    private static double[] meanAndError(double[] x) {
        double mean = Arrays.stream(x).average().orElseThrow();
        double squares = Arrays.stream(x).map(v -> v * v).average().orElseThrow();
        double variance = squares - mean * mean;
        return new double[] {mean, variance > 0 ? Math.sqrt(variance / (x.length - 1)) : 0};
    }

    /** Of the means. */
    private static double covariance(double[] x, double[] y) {
        double mean = 0;
        for (int i = 0; i < x.length; i++) {
            mean += x[i] * y[i] / x.length;
        }
        return (mean
                        - Arrays.stream(x).average().orElseThrow()
                                * Arrays.stream(y).average().orElseThrow())
                / (x.length - 1);
    }

    private static double percentile(double[] sorted, double fraction) {
        double at = fraction * (sorted.length - 1);
        int below = (int) at;
        return sorted[below] + (at - below) * (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]);
    }
}
