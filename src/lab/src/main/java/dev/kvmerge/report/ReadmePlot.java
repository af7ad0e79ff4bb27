package dev.kvmerge.report;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * The README's plot: divergence by the share of cells that stay, both axes logarithmic. Written element by element,
 * since a chart library lays out by the fonts of the machine, and this file is to be the same everywhere.
 */
final class ReadmePlot {
    private static final int WIDTH = 760;
    private static final int HEIGHT = 380;
    private static final int LEFT = 70;
    private static final int RIGHT = 200;
    private static final int TOP = 20;
    private static final int BOTTOM = 50;
    private static final double[] SHARES = {0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95};
    private static final double[] LEVELS = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3};
    private static final Map<String, String> COLOURS = Map.of(
            "entropy-merged", "#c0392b",
            "h2o", "#2471a3",
            "snapkv", "#7d3c98",
            "streaming-llm", "#b9770e",
            "oracle", "#7f8c8d");

    private final StringBuilder svg = new StringBuilder();

    private ReadmePlot() {}

    /** The plot as SVG, from docs/results/cells.csv and alice.csv. */
    static String of(Figures cells, Figures alice) {
        return new ReadmePlot().draw(cells, alice);
    }

    private String draw(Figures cells, Figures alice) {
        add(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"13\">%n",
                WIDTH, HEIGHT);
        add("<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>%n", WIDTH, HEIGHT);
        for (double share : SHARES) {
            add(line(x(share), TOP, x(share), HEIGHT - BOTTOM, "#e5e7e9", ""));
            text(x(share), HEIGHT - BOTTOM + 18, "middle", "#333333", Math.round(share * 100) + " %");
        }
        for (double level : LEVELS) {
            add(line(LEFT, y(level), WIDTH - RIGHT, y(level), "#e5e7e9", ""));
            text(LEFT - 8, y(level) + 4, "end", "#333333", Double.toString(level));
        }
        text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10, "middle", "#333333", "cells that stay, of 4,096");
        add(
                "<text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\" fill=\"#333333\">%s</text>%n",
                (HEIGHT - BOTTOM + TOP) / 2, "KL(full || compressed), nats a token");
        scale("all cells, in Q8_0", alice, "q8_0");
        scale("all cells, Q4_0 weights", alice, "weights:type=q4_0");
        List<double[]> points = new ArrayList<>();
        cells.rows().forEach(r -> points.add(new double[] {Figures.number(r.get(0)) / 100, Figures.number(r.get(1))}));
        series("entropy-merged", points, 0);
        int place = 1;
        for (String name : List.of("oracle", "h2o", "snapkv", "streaming-llm")) {
            series(name, List.of(point(alice, "90 %", name), point(alice, "70 %", name)), place++);
        }
        return svg.append("</svg>\n").toString();
    }

    private static double[] point(Figures alice, String saved, String name) {
        return new double[] {1 - Figures.number(saved) / 100, Figures.number(alice.figure(List.of(saved, name), "KL"))};
    }

    private void scale(String words, Figures alice, String name) {
        double level = point(alice, "90 %", name)[1];
        add(line(LEFT, y(level), WIDTH - RIGHT, y(level), "#999999", " stroke-dasharray=\"5 4\""));
        text(WIDTH - RIGHT + 8, y(level) + 4, "start", "#777777", words);
    }

    private void series(String name, List<double[]> points, int place) {
        String colour = COLOURS.get(name);
        for (int i = 0; i < points.size(); i++) {
            double[] p = points.get(i);
            add("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>%n", x(p[0]), y(p[1]), colour);
            if (i > 0) {
                double[] before = points.get(i - 1);
                add(line(x(before[0]), y(before[1]), x(p[0]), y(p[1]), colour, " stroke-width=\"2\""));
            }
        }
        int row = TOP + 80 + 22 * place;
        add("<circle cx=\"%d\" cy=\"%d\" r=\"4\" fill=\"%s\"/>%n", WIDTH - RIGHT + 16, row - 4, colour);
        text(WIDTH - RIGHT + 28, row, "start", "#333333", name.equals("oracle") ? "oracle (knows the future)" : name);
    }

    private static double x(double share) {
        double first = Math.log(0.045);
        return LEFT + (Math.log(share) - first) / -first * (WIDTH - RIGHT - LEFT);
    }

    private static double y(double kl) {
        double low = Math.log(0.001);
        double high = Math.log(0.4);
        return TOP + (high - Math.log(kl)) / (high - low) * (HEIGHT - BOTTOM - TOP);
    }

    private static String line(double x1, double y1, double x2, double y2, String colour, String more) {
        return String.format(
                Locale.ROOT,
                "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"%s/>%n",
                x1,
                y1,
                x2,
                y2,
                colour,
                more);
    }

    private void text(double x, double y, String anchor, String colour, String words) {
        add("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">%s</text>%n", x, y, anchor, colour, words);
    }

    private void add(String form, Object... values) {
        svg.append(values.length == 0 ? form : String.format(Locale.ROOT, form, values));
    }
}
