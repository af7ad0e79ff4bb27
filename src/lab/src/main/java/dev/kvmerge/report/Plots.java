package dev.kvmerge.report;

import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** An experiment's plots, as SVG. */
public final class Plots {
    private static final double MIB = 1024.0 * 1024.0;
    private static final int STRETCH = 256; // most tokens that KL along the text is averaged over
    private static final int POINTS = 250; // of a line along the text

    private Plots() {}

    /**
     * Draws what the runs allow.
     *
     * @param traces by run id; of runs that have one
     * @return SVG documents by file name
     */
    public static Map<String, String> of(List<RunResult> runs, Map<String, Trace> traces) {
        Map<String, String> plots = new LinkedHashMap<>();
        RunResult full = runs.stream()
                .filter(r -> r.strategy().equals(Strategies.FULL))
                .findFirst()
                .orElse(null);
        List<RunResult> compressed =
                runs.stream().filter(r -> r.compression() > 0).toList();
        Styles styles = new Styles(runs);
        if (!compressed.isEmpty()) {
            Chart.Axis saved = new Chart.Axis("cells saved, %");
            plots.put(
                    "perplexity.svg",
                    Chart.lines(
                            "What a smaller cache costs: perplexity",
                            saved,
                            new Chart.Axis("perplexity above the full cache's, %"),
                            byStrategy(
                                    compressed,
                                    styles,
                                    r -> r.perplexity() == null || r.perplexityFull() == null
                                            ? null
                                            : 100 * (r.perplexity() / r.perplexityFull() - 1),
                                    r -> null)));
            plots.put(
                    "kl.svg",
                    Chart.lines(
                            "What a smaller cache costs: divergence",
                            saved,
                            Chart.Axis.logarithmic("KL(full || compressed), nats"),
                            byStrategy(compressed, styles, RunResult::klMean, RunResult::klSe)));
            if (full != null && full.tokensPerSecond() != null) {
                plots.put(
                        "speed.svg",
                        Chart.lines(
                                "What a smaller cache saves: time",
                                saved,
                                new Chart.Axis("speed relative to the full cache"),
                                byStrategy(
                                        compressed,
                                        styles,
                                        r -> r.tokensPerSecond() == null
                                                ? null
                                                : r.tokensPerSecond() / full.tokensPerSecond(),
                                        r -> null)));
            }
            plots.put(
                    "memory.svg",
                    Chart.lines(
                            "What a smaller cache saves: memory",
                            saved,
                            Chart.Axis.fromZero("K and V cells, MiB"),
                            memory(compressed)));
        }
        if (runs.stream().anyMatch(r -> r.strategy().contains("@"))) {
            plots.put("frontier.svg", Frontier.plot(runs));
        }
        int from = compressed.stream().mapToInt(RunResult::cells).max().orElse(0) + 1;
        List<Chart.Line> perplexities = new ArrayList<>();
        List<Chart.Line> divergences = new ArrayList<>();
        for (RunResult run : runs) {
            Trace trace = traces.get(run.id());
            if (trace != null) {
                perplexities.add(running(run, trace, from, styles));
                if (run.klMean() != null) {
                    divergences.add(averaged(run, trace, styles));
                }
            }
        }
        Chart.Axis along = new Chart.Axis("tokens read");
        if (!perplexities.isEmpty()) {
            plots.put(
                    "running-perplexity.svg",
                    Chart.lines(
                            "Perplexity along the text, from where every budget is full",
                            along,
                            new Chart.Axis("perplexity of the tokens so far"),
                            perplexities));
        }
        if (!divergences.isEmpty()) {
            plots.put(
                    "kl-along-text.svg",
                    Chart.lines(
                            "Divergence along the text, moving mean",
                            along,
                            Chart.Axis.logarithmic("KL(full || compressed), nats"),
                            divergences));
        }
        return plots;
    }

    /** A colour a strategy, a stroke a compression, the same in every plot. */
    private static final class Styles {
        private final List<String> strategies;
        private final List<Double> compressions;

        Styles(List<RunResult> runs) {
            strategies = runs.stream().map(RunResult::strategy).distinct().toList();
            compressions = runs.stream()
                    .map(RunResult::compression)
                    .filter(c -> c > 0)
                    .distinct()
                    .sorted()
                    .toList();
        }

        int colour(String strategy) {
            return strategies.indexOf(strategy);
        }

        int dash(RunResult run) {
            return Math.max(0, compressions.indexOf(run.compression()));
        }
    }

    /** A figure of a run; null where there is none. */
    private interface Figure {
        Double of(RunResult run);
    }

    private static List<Chart.Line> byStrategy(List<RunResult> runs, Styles styles, Figure y, Figure error) {
        Map<String, List<RunResult>> grouped = new LinkedHashMap<>();
        runs.forEach(r ->
                grouped.computeIfAbsent(r.strategy(), k -> new ArrayList<>()).add(r));
        List<Chart.Line> lines = new ArrayList<>();
        grouped.forEach((name, group) -> lines.add(line(name, group, y, error, styles.colour(name))));
        return lines;
    }

    private static Chart.Line line(String name, List<RunResult> group, Figure y, Figure error, int colour) {
        List<RunResult> sorted = group.stream()
                .sorted(Comparator.comparing(RunResult::compression))
                .toList();
        boolean known = sorted.stream().allMatch(r -> error.of(r) != null);
        return new Chart.Line(
                name,
                sorted.stream().mapToDouble(r -> 100 * r.compression()).toArray(),
                sorted.stream()
                        .mapToDouble(r -> y.of(r) == null ? Double.NaN : y.of(r))
                        .toArray(),
                known ? sorted.stream().mapToDouble(error::of).toArray() : null,
                colour,
                0);
    }

    private static List<Chart.Line> memory(List<RunResult> runs) {
        Map<Double, RunResult> first = new LinkedHashMap<>();
        runs.forEach(r -> first.putIfAbsent(r.compression(), r));
        List<RunResult> each = List.copyOf(first.values());
        return List.of(
                line("full cache", each, r -> r.kvBytesFull() == null ? null : r.kvBytesFull() / MIB, r -> null, 0),
                line(
                        "compressed: the cells and a block, rounded up to 256 by llama.cpp",
                        each,
                        r -> r.kvBytes() == null ? null : r.kvBytes() / MIB,
                        r -> null,
                        1));
    }

    private static String label(RunResult run) {
        return run.compression() == 0
                ? run.strategy()
                : run.strategy() + " -" + Math.round(100 * run.compression()) + " %";
    }

    /**
     * Perplexity of all tokens since `from`, at a few hundred places; the first of them, which say nothing yet, left
     * out.
     */
    private static Chart.Line running(RunResult run, Trace trace, int from, Styles styles) {
        int n = trace.nll().length;
        int step = Math.max(1, (n - from) / POINTS);
        List<double[]> points = new ArrayList<>();
        double sum = 0;
        int count = 0;
        for (int i = from; i < n; i++) {
            if (!Double.isNaN(trace.nll()[i])) {
                sum += trace.nll()[i];
                count++;
            }
            if (i % step == 0 && i - from >= (n - from) / 10) {
                points.add(new double[] {i, Math.exp(sum / Math.max(1, count))});
            }
        }
        return points(run, points, styles);
    }

    private static Chart.Line averaged(RunResult run, Trace trace, Styles styles) {
        int n = trace.kl().length;
        int stretch = Math.clamp((n - run.cells()) / 8, 1, STRETCH);
        int step = Math.max(1, (n - run.cells()) / POINTS);
        List<double[]> points = new ArrayList<>();
        double sum = 0;
        for (int i = run.cells() + 1, count = 1; i < n && !Double.isNaN(trace.kl()[i]); i++, count++) {
            sum += trace.kl()[i];
            if (count > stretch) {
                sum -= trace.kl()[i - stretch];
            }
            if (count >= stretch && count % step == 0) {
                points.add(new double[] {i - stretch / 2.0, Math.max(1e-7, sum / stretch)});
            }
        }
        return points(run, points, styles);
    }

    private static Chart.Line points(RunResult run, List<double[]> points, Styles styles) {
        return new Chart.Line(
                label(run),
                points.stream().mapToDouble(p -> p[0]).toArray(),
                points.stream().mapToDouble(p -> p[1]).toArray(),
                null,
                styles.colour(run.strategy()),
                styles.dash(run));
    }

    /** A heat map of value[row][column] between 0 and high. */
    public static String heatMap(
            String title, String columnLabel, String rowLabel, double[][] value, double high, String valueLabel) {
        return Chart.heatMap(title, columnLabel, rowLabel, value, high, valueLabel);
    }

    /** A histogram over 0..1 as a line of shares. */
    public static String distribution(String title, String xLabel, double[] share) {
        double[] x = new double[share.length];
        for (int i = 0; i < x.length; i++) {
            x[i] = (i + 0.5) / share.length;
        }
        return Chart.lines(
                title,
                new Chart.Axis(xLabel),
                Chart.Axis.fromZero("share of rows"),
                List.of(new Chart.Line("all layers and heads", x, share, null, 1, 0)));
    }
}
