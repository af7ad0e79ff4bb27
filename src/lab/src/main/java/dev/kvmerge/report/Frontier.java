package dev.kvmerge.report;

import dev.kvmerge.eval.RunResult;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** Divergence over memory: what --kv-mib is chosen by. */
final class Frontier {
    private static final double MIB = 1024.0 * 1024.0;
    private static final String WHOLE = "llama.cpp's whole caches, by type";

    private Frontier() {}

    /** A cache: its strategy and types, what it takes, and the divergence with its standard error. */
    private record Point(String name, double mib, double kl, double error) {
        /** Null for a run that has no divergence: the one that all are compared with. */
        static Point of(RunResult run) {
            return run.klMean() == null || run.kvBytes() == null
                    ? null
                    : new Point(run.strategy(), run.kvBytes() / MIB, run.klMean(), run.klSe() == null ? 0 : run.klSe());
        }

        boolean isWhole() {
            return name.startsWith(Strategies.FULL + "@");
        }
    }

    /** Of an experiment. */
    static String plot(List<RunResult> runs) {
        return plot(
                runs.stream()
                        .filter(run -> run.strategy().contains("@"))
                        .map(Point::of)
                        .filter(Objects::nonNull)
                        .toList(),
                "What less memory costs");
    }

    /** Of a table that an experiment printed. */
    static String plot(Figures table, String title) {
        List<Point> points = new ArrayList<>();
        for (List<String> row : table.rows()) {
            List<String> key = row.subList(0, 2);
            if (row.get(1).contains("@")) {
                points.add(new Point(
                        row.get(1),
                        Figures.number(table.figure(key, "KV MiB")),
                        Figures.number(table.figure(key, "KL")),
                        Figures.number(table.figure(key, "KL +/-"))));
            }
        }
        return plot(points, title);
    }

    /** A line for each strategy and type, and one for the full caches of all types. */
    private static String plot(List<Point> points, String title) {
        Map<String, List<Point>> lines = new LinkedHashMap<>();
        points.forEach(p -> lines.computeIfAbsent(p.isWhole() ? WHOLE : p.name(), _ -> new ArrayList<>())
                .add(p));
        List<Chart.Line> drawn = new ArrayList<>();
        lines.forEach((name, line) -> drawn.add(line(name, line, drawn.size() + 1)));
        return Chart.lines(
                title,
                Chart.Axis.logarithmic("K and V cells, MiB allocated"),
                Chart.Axis.logarithmic("KL(full in F16 || smaller), nats"),
                drawn);
    }

    private static Chart.Line line(String name, List<Point> points, int number) {
        List<Point> sorted =
                points.stream().sorted(Comparator.comparing(Point::mib)).toList();
        return new Chart.Line(
                name,
                sorted.stream().mapToDouble(Point::mib).toArray(),
                sorted.stream().mapToDouble(Point::kl).toArray(),
                sorted.stream().mapToDouble(Point::error).toArray(),
                name.equals(WHOLE) ? 0 : number,
                name.equals(WHOLE) ? 1 : 0);
    }
}
