package dev.kvmerge.report;

import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.Proportion;
import dev.kvmerge.eval.Ruler;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;

/** Right answers over the cells saved, a line for each cache. */
final class AccuracyPlot {
    private static final double PERCENT = 100;

    private AccuracyPlot() {}

    private record Point(double saved, double right, double error) {}

    /** Of RULER's tasks, a plot for each length of the texts, the shortest first. */
    static List<String> ruler(List<Ruler.Reading> readings, List<String> tasks) {
        List<String> plots = new ArrayList<>();
        readings.stream()
                .collect(Collectors.groupingBy(r -> r.item().tokens(), TreeMap::new, Collectors.toList()))
                .forEach((tokens, all) -> {
                    Map<String, List<Point>> lines = new LinkedHashMap<>();
                    all.stream()
                            .collect(Collectors.groupingBy(
                                    Ruler.Reading::cache,
                                    LinkedHashMap::new,
                                    Collectors.groupingBy(
                                            Ruler.Reading::compression, TreeMap::new, Collectors.toList())))
                            .forEach((cache, parts) -> parts.forEach((compression, part) -> {
                                RulerTable.Mean mean = RulerTable.all(part, tasks);
                                lines.computeIfAbsent(cache, _ -> new ArrayList<>())
                                        .add(new Point(compression, mean.mean(), mean.error()));
                            }));
                    plots.add(of(
                            "RULER's tasks in texts of " + Table.number("%,.0f", (double) tokens) + " tokens",
                            "expected answers that were given, %",
                            lines));
                });
        return plots;
    }

    /** Of facts, which the conversation has made likelier than others of their kind. */
    static String facts(List<Facts.Run> runs) {
        Map<String, List<Point>> lines = new LinkedHashMap<>();
        for (Facts.Run run : runs) {
            Proportion right = FactsTable.likeliest(run);
            double saved = run.cells() == 0 ? 0 : 1 - (double) run.cells() / run.tokens();
            lines.computeIfAbsent(run.cache(), _ -> new ArrayList<>()).add(new Point(saved, right.share(), Double.NaN));
        }
        return of("What is left of a conversation's facts", "facts that are the likeliest of their kind, %", lines);
    }

    private static String of(String title, String right, Map<String, List<Point>> caches) {
        List<Chart.Line> lines = new ArrayList<>();
        caches.forEach((name, points) -> {
            points.sort(Comparator.comparingDouble(Point::saved)); // the line goes from point to point
            lines.add(new Chart.Line(
                    name,
                    points.stream().mapToDouble(p -> PERCENT * p.saved).toArray(),
                    points.stream().mapToDouble(p -> PERCENT * p.right).toArray(),
                    points.stream().mapToDouble(p -> PERCENT * p.error).toArray(),
                    lines.size(),
                    0));
        });
        return Chart.lines(title, Chart.Axis.fromZero("cells saved, %"), Chart.Axis.fromZero(right), lines);
    }
}
