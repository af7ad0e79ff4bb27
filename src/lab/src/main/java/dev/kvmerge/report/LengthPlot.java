package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Time a token by the length of the text before it: what a bounded cache keeps level. */
final class LengthPlot {
    private static final Pattern TEST = Pattern.compile("pp(?<prompt>\\d+)|tg\\d+ @ (?<after>\\d+)");
    private static final String SAVED = " \\d+ %$"; // behind a cache's name, another at each length
    private static final double MILLISECONDS = 1000;

    private LengthPlot() {}

    private record Point(double tokens, double milliseconds) {}

    /** Of a table that bench printed: a line for each cache and phase. */
    static String of(Figures table, String title) {
        Map<String, List<Point>> lines = new LinkedHashMap<>();
        int cache = table.columns().indexOf("cache");
        int test = table.columns().indexOf("test");
        int speed = table.columns().indexOf("t/s");
        for (List<String> row : table.rows()) {
            Matcher of = TEST.matcher(row.get(test));
            if (!of.matches()) {
                throw new KvmergeException("'" + row.get(test) + "' is no test of bench");
            }
            boolean prompt = of.group("prompt") != null;
            String name = row.get(cache).replaceFirst(SAVED, "") + (prompt ? ", prompt" : ", generation");
            lines.computeIfAbsent(name, _ -> new ArrayList<>())
                    .add(new Point(
                            Double.parseDouble(of.group(prompt ? "prompt" : "after")),
                            MILLISECONDS / Figures.number(row.get(speed))));
        }
        List<Chart.Line> drawn = new ArrayList<>();
        lines.forEach((name, points) -> drawn.add(new Chart.Line(
                name,
                points.stream().mapToDouble(Point::tokens).toArray(),
                points.stream().mapToDouble(Point::milliseconds).toArray(),
                null,
                drawn.size() / 2 * 2,
                name.endsWith("prompt") ? 1 : 0)));
        return Chart.lines(title, new Chart.Axis("tokens before"), Chart.Axis.fromZero("milliseconds a token"), drawn);
    }
}
