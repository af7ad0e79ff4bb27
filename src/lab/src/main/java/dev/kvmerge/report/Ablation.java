package dev.kvmerge.report;

import java.util.List;
import java.util.Locale;

/** How the divergence depends on one parameter. */
public final class Ablation {
    /**
     * One value of the parameter.
     *
     * @param kl mean KL from the full cache, nats
     * @param klSe its standard error
     */
    public record Point(String value, double kl, double klSe, Double perplexity, Double perplexityFull) {}

    private Ablation() {}

    /** A Markdown table. */
    public static String table(String parameter, List<Point> points) {
        StringBuilder text = new StringBuilder();
        text.append("| ")
                .append(parameter)
                .append(" | KL | +/- | perplexity | full cache |\n| --: | --: | --: | --: | --: |\n");
        for (Point p : points) {
            text.append(String.format(
                    Locale.ROOT,
                    "| %s | %.5f | %.5f | %s | %s |%n",
                    p.value(),
                    p.kl(),
                    p.klSe(),
                    Table.number("%.3f", p.perplexity()),
                    Table.number("%.3f", p.perplexityFull())));
        }
        return text.toString();
    }

    /** KL against the parameter, with error bars; values that are words stand at 1, 2, 3, ... */
    public static String plot(String strategy, String parameter, List<Point> points) {
        double[] x = new double[points.size()];
        double[] y = new double[x.length];
        double[] error = new double[x.length];
        StringBuilder words = new StringBuilder();
        for (int i = 0; i < x.length; i++) {
            Point p = points.get(i);
            try {
                x[i] = Double.parseDouble(p.value());
            } catch (NumberFormatException e) {
                x[i] = i + 1;
                words.append(words.isEmpty() ? ": " : ", ")
                        .append(i + 1)
                        .append(" ")
                        .append(p.value());
            }
            y[i] = p.kl();
            error[i] = p.klSe();
        }
        return Chart.lines(
                strategy + ": KL by " + parameter,
                new Chart.Axis(parameter + words),
                Chart.Axis.fromZero("KL(full || compressed), nats"),
                List.of(new Chart.Line(strategy, x, y, error, 1, 0)));
    }
}
