package dev.kvmerge.report;

import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** An experiment's plots, as SVG. */
public final class Plots {
  private static final double MIB = 1024.0 * 1024.0;
  private static final int WINDOW = 256; // tokens that KL along the text is averaged over

  private Plots() {}

  /**
   * Draws what the runs allow.
   *
   * @param traces by run id; of runs that have one
   * @return SVG documents by file name
   */
  public static Map<String, String> of(List<RunResult> runs, Map<String, Trace> traces) {
    Map<String, String> plots = new LinkedHashMap<>();
    RunResult full = runs.stream().filter(r -> r.compression() == 0).findFirst().orElse(null);
    List<RunResult> compressed = runs.stream().filter(r -> r.compression() > 0).toList();
    if (!compressed.isEmpty()) {
      Chart.Axis saved = new Chart.Axis("cells saved, %", false);
      plots.put("perplexity.svg", Chart.lines("What a smaller cache costs: perplexity", saved, new Chart.Axis("perplexity above the full cache's, %", false),
          byStrategy(compressed, r -> r.perplexity() == null || r.perplexityFull() == null ? null : 100 * (r.perplexity() / r.perplexityFull() - 1), r -> null)));
      plots.put("kl.svg", Chart.lines("What a smaller cache costs: divergence", saved, new Chart.Axis("KL(full || compressed), nats", true),
          byStrategy(compressed, RunResult::klMean, RunResult::klSe)));
      if (full != null && full.tokensPerSecond() != null) {
        plots.put("speed.svg", Chart.lines("What a smaller cache saves: time", saved, new Chart.Axis("speed relative to the full cache", false),
            byStrategy(compressed, r -> r.tokensPerSecond() == null ? null : r.tokensPerSecond() / full.tokensPerSecond(), r -> null)));
      }
      plots.put("memory.svg", Chart.lines("What a smaller cache saves: memory", saved, new Chart.Axis("K and V cells, MiB", false), memory(compressed)));
    }
    List<Chart.Line> perplexities = new ArrayList<>();
    List<Chart.Line> divergences = new ArrayList<>();
    for (RunResult run : runs) {
      Trace trace = traces.get(run.id());
      if (trace != null) {
        perplexities.add(running(run, trace));
        if (run.klMean() != null) {
          divergences.add(windowed(run, trace));
        }
      }
    }
    Chart.Axis along = new Chart.Axis("tokens read", false);
    if (!perplexities.isEmpty()) {
      plots.put("running-perplexity.svg", Chart.lines("Perplexity along the text", along, new Chart.Axis("perplexity of the text so far", false), perplexities));
    }
    if (!divergences.isEmpty()) {
      plots.put("kl-along-text.svg", Chart.lines("Divergence along the text, mean of " + WINDOW + " tokens", along,
          new Chart.Axis("KL(full || compressed), nats", true), divergences));
    }
    return plots;
  }

  /** A figure of a run; null where there is none. */
  private interface Figure {
    Double of(RunResult run);
  }

  private static List<Chart.Line> byStrategy(List<RunResult> runs, Figure y, Figure error) {
    Map<String, List<RunResult>> grouped = new LinkedHashMap<>();
    runs.forEach(r -> grouped.computeIfAbsent(r.strategy(), k -> new ArrayList<>()).add(r));
    List<Chart.Line> lines = new ArrayList<>();
    grouped.forEach((name, group) -> lines.add(line(name, group, y, error)));
    return lines;
  }

  private static Chart.Line line(String name, List<RunResult> group, Figure y, Figure error) {
    List<RunResult> sorted = group.stream().sorted(Comparator.comparing(RunResult::compression)).toList();
    double[] errors = sorted.stream().mapToDouble(r -> error.of(r) == null ? 0 : error.of(r)).toArray();
    return new Chart.Line(
        name,
        sorted.stream().mapToDouble(r -> 100 * r.compression()).toArray(),
        sorted.stream().mapToDouble(r -> y.of(r) == null ? Double.NaN : y.of(r)).toArray(),
        errors);
  }

  private static List<Chart.Line> memory(List<RunResult> runs) {
    return List.of(
        line("allocated by llama.cpp (cells and one block, rounded up to 256)", firstOfEach(runs), r -> r.kvBytes() == null ? null : r.kvBytes() / MIB, r -> null),
        line("full cache", firstOfEach(runs), r -> r.kvBytesFull() == null ? null : r.kvBytesFull() / MIB, r -> null));
  }

  private static List<RunResult> firstOfEach(List<RunResult> runs) {
    Map<Double, RunResult> first = new LinkedHashMap<>();
    runs.forEach(r -> first.putIfAbsent(r.compression(), r));
    return List.copyOf(first.values());
  }

  private static String label(RunResult run) {
    return run.compression() == 0 ? run.strategy() : run.strategy() + " -" + Math.round(100 * run.compression()) + " %";
  }

  /** Perplexity of all tokens so far, at up to a few hundred places; the first tokens, which say nothing yet, left out. */
  private static Chart.Line running(RunResult run, Trace trace) {
    int n = trace.nll().length;
    int step = Math.max(1, n / 400);
    List<double[]> points = new ArrayList<>();
    double sum = 0;
    int count = 0;
    for (int i = 0; i < n; i++) {
      if (!Double.isNaN(trace.nll()[i])) {
        sum += trace.nll()[i];
        count++;
      }
      if (i % step == 0 && i >= Math.min(n / 10, 256)) {
        points.add(new double[] {i, Math.exp(sum / Math.max(1, count))});
      }
    }
    return points(label(run), points);
  }

  private static Chart.Line windowed(RunResult run, Trace trace) {
    List<double[]> points = new ArrayList<>();
    double sum = 0;
    int count = 0;
    for (int i = 0; i < trace.kl().length; i++) {
      if (!Double.isNaN(trace.kl()[i]) && i > run.cells()) {
        sum += trace.kl()[i];
        if (++count == WINDOW) {
          points.add(new double[] {i - WINDOW / 2.0, Math.max(1e-7, sum / WINDOW)});
          sum = 0;
          count = 0;
        }
      }
    }
    return points(label(run), points);
  }

  private static Chart.Line points(String name, List<double[]> points) {
    return new Chart.Line(name, points.stream().mapToDouble(p -> p[0]).toArray(), points.stream().mapToDouble(p -> p[1]).toArray(), null);
  }

  /** A heat map of value[row][column] between 0 and high. */
  public static String heatMap(String title, String columnLabel, String rowLabel, double[][] value, double high, String valueLabel) {
    return Chart.heatMap(title, columnLabel, rowLabel, null, value, 0, high, valueLabel);
  }

  /** A histogram over 0..1 as a line of shares. */
  public static String distribution(String title, String xLabel, double[] share) {
    double[] x = new double[share.length];
    for (int i = 0; i < x.length; i++) {
      x[i] = (i + 0.5) / share.length;
    }
    return Chart.lines(title, new Chart.Axis(xLabel, false), new Chart.Axis("share of rows", false), List.of(new Chart.Line("all layers and heads", x, share, null)));
  }
}
