package dev.kvmerge.report;

import dev.kvmerge.eval.Trace;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Perplexity stretch by stretch, of texts longer than the trained context. */
public final class EndlessTable {
    private EndlessTable() {}

    /** A row a stretch, a column a cache. */
    public static String of(Map<String, double[]> traces, int stretch) {
        List<String[]> rows = new ArrayList<>();
        rows.add(new String[] {"tokens"});
        rows.set(0, append(rows.getFirst(), traces.keySet().toArray(String[]::new)));
        for (int from = 1; from < longest(traces); from += stretch) {
            String[] row = {String.format(Locale.ROOT, "%,d", from + stretch - 1)};
            for (double[] nll : traces.values()) {
                row = append(row, from < nll.length ? format(nll, from, stretch) : "-");
            }
            rows.add(row);
        }
        return Table.align(rows);
    }

    /** One row a stretch and cache. */
    public static String csv(Map<String, double[]> traces, int stretch) {
        StringBuilder text = new StringBuilder("cache,tokens,perplexity\n");
        traces.forEach((name, nll) -> {
            for (int from = 1; from < nll.length; from += stretch) {
                text.append('"')
                        .append(name)
                        .append("\",")
                        .append(Math.min(nll.length, from + stretch - 1))
                        .append(',')
                        .append(format(nll, from, stretch))
                        .append('\n');
            }
        });
        return text.toString();
    }

    /** The same as a plot. */
    public static String plot(Map<String, double[]> traces, int stretch, int trainedContext) {
        List<Chart.Line> lines = new ArrayList<>();
        traces.forEach((name, nll) -> {
            int n = (nll.length - 2) / stretch + 1;
            double[] x = new double[n];
            double[] y = new double[n];
            for (int i = 0; i < n; i++) {
                int from = 1 + i * stretch;
                x[i] = Math.min(nll.length, from + stretch - 1);
                y[i] = perplexity(nll, from, stretch);
            }
            lines.add(new Chart.Line(name, x, y, null, lines.size(), lines.size() % 4));
        });
        return Chart.lines(
                "Perplexity past the trained context of " + trainedContext + " tokens",
                new Chart.Axis("tokens read"),
                Chart.Axis.logarithmic("perplexity of the last " + stretch + " tokens"),
                lines);
    }

    private static String format(double[] nll, int from, int stretch) {
        return String.format(Locale.ROOT, "%.3f", perplexity(nll, from, stretch));
    }

    private static double perplexity(double[] nll, int from, int stretch) {
        return Trace.perplexity(nll, from, Math.min(nll.length, from + stretch)).value();
    }

    private static int longest(Map<String, double[]> traces) {
        return traces.values().stream().mapToInt(t -> t.length).max().orElse(0);
    }

    private static String[] append(String[] row, String... more) {
        String[] longer = java.util.Arrays.copyOf(row, row.length + more.length);
        System.arraycopy(more, 0, longer, row.length, more.length);
        return longer;
    }
}
