package dev.kvmerge.report;

import dev.kvmerge.eval.Trace;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Perplexity stretch by stretch, of texts longer than the trained context. */
public final class EndlessTable {
    private EndlessTable() {}

    /** A row a stretch, a column a cache; beside each further one by how much it is above the first that is bounded. */
    public static String of(Map<String, double[]> traces, int stretch) {
        String first = first(traces);
        List<String> head = new ArrayList<>(List.of("tokens"));
        traces.keySet().forEach(name -> {
            head.add(name);
            if (isCompared(name, first)) {
                head.add("that over " + first);
            }
        });
        List<String[]> rows = new ArrayList<>();
        rows.add(head.toArray(String[]::new));
        int longest = traces.values().stream().mapToInt(t -> t.length).max().orElse(0);
        for (int from = 1; from < longest; from += stretch) {
            int last = Math.min(longest, from + stretch - 1);
            rows.add(row(traces, String.format(Locale.ROOT, "%,d", last), from, last, stretch));
        }
        rows.add(row(traces, "all", 1, longest, longest));
        return Table.align(rows);
    }

    /** A cache that has not read on to the last token has no figure: part of a stretch is another text. */
    private static String[] row(Map<String, double[]> traces, String label, int from, int last, int stretch) {
        String first = first(traces);
        List<String> row = new ArrayList<>(List.of(label));
        traces.forEach((name, nll) -> {
            row.add(nll.length >= last ? format(nll, from, stretch) : "-");
            if (isCompared(name, first)) {
                Trace.Above above = Trace.above(nll, traces.get(first), from, from + stretch);
                row.add(
                        above == null
                                ? "-"
                                : String.format(Locale.ROOT, "%+.1f ± %.1f %%", above.percent(), above.error()));
            }
        });
        return row.toArray(String[]::new);
    }

    /** One row a stretch and cache; the last two fields are empty for the full cache and the first bounded one. */
    public static String csv(Map<String, double[]> traces, int stretch) {
        String first = first(traces);
        StringBuilder text = new StringBuilder("cache,tokens,perplexity,percent_over_first,percent_error\n");
        traces.forEach((name, nll) -> {
            for (int from = 1; from < nll.length; from += stretch) {
                Trace.Above above =
                        isCompared(name, first) ? Trace.above(nll, traces.get(first), from, from + stretch) : null;
                text.append('"')
                        .append(name)
                        .append("\",")
                        .append(Math.min(nll.length, from + stretch - 1))
                        .append(',')
                        .append(format(nll, from, stretch))
                        .append(
                                above == null
                                        ? ",,"
                                        : String.format(Locale.ROOT, ",%.3f,%.3f", above.percent(), above.error()))
                        .append('\n');
            }
        });
        return text.toString();
    }

    /** The first cache that is bounded; null if none is. */
    private static String first(Map<String, double[]> traces) {
        return traces.keySet().stream()
                .filter(name -> !name.equals(Strategies.FULL))
                .findFirst()
                .orElse(null);
    }

    private static boolean isCompared(String name, String first) {
        return !name.equals(Strategies.FULL) && !name.equals(first);
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
}
