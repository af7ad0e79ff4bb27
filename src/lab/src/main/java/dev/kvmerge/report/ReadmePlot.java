package dev.kvmerge.report;

import java.util.ArrayList;
import java.util.List;

/** The README's plot: divergence by the share of cells that stay. */
final class ReadmePlot {
    private static final double[] ALL = {0.05, 1};

    private ReadmePlot() {}

    /** The plot as SVG, from docs/results/cells.csv and alice.csv. */
    static String of(Figures cells, Figures alice) {
        List<Chart.Line> lines = new ArrayList<>();
        double[] share = cells.rows().stream()
                .mapToDouble(r -> Figures.number(r.get(0)) / 100)
                .toArray();
        double[] kl =
                cells.rows().stream().mapToDouble(r -> Figures.number(r.get(1))).toArray();
        lines.add(new Chart.Line("entropy-merged", share, kl, null, 2, 0));
        for (String name : List.of("oracle", "h2o", "snapkv", "streaming-llm")) {
            double[] y = {kl(alice, "90 %", name), kl(alice, "70 %", name)};
            lines.add(new Chart.Line(name, new double[] {0.1, 0.3}, y, null, lines.size() + 2, 0));
        }
        lines.add(whole("all cells, in Q8_0", kl(alice, "90 %", "q8_0"), 2));
        lines.add(whole("all cells, Q4_0 weights", kl(alice, "90 %", "weights:type=q4_0"), 1));
        return Chart.lines(
                "Divergence from the full cache, SmolLM2-135M, Alice",
                Chart.Axis.logarithmic("share of the 4,096 cells that stay"),
                Chart.Axis.logarithmic("KL(full || compressed), nats"),
                lines);
    }

    private static Chart.Line whole(String name, double kl, int dash) {
        return new Chart.Line(name, ALL, new double[] {kl, kl}, null, 0, dash);
    }

    private static double kl(Figures alice, String saved, String name) {
        return Figures.number(alice.figure(List.of(saved, name), "KL"));
    }
}
