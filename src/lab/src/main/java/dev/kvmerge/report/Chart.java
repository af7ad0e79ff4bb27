package dev.kvmerge.report;

import dev.kvmerge.report.Svg.Anchor;
import java.util.Arrays;
import java.util.List;
import java.util.stream.DoubleStream;
import java.util.stream.IntStream;

/**
 * Plots as one puts in a paper: white ground, few lines, colours that colour-blind readers can tell apart (Okabe and
 * Ito 2008).
 */
final class Chart {
    private static final int WIDTH = 760;
    private static final int HEIGHT = 460;
    private static final int[] COLOURS = {0x000000, 0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7, 0xE69F00, 0x56B4E9, 0x999999
    };
    private static final String[] DASHES = {"", "7 4", "2 3", "10 3 2 3"};
    private static final int[] VIRIDIS = {
        0x440154, 0x482878, 0x3e4989, 0x31688e, 0x26828e, 0x1f9e89, 0x35b779, 0x6ece58, 0xb5de2b, 0xfde725
    };
    private static final int SHADES = 64;
    private static final int GRID = 0xDDDDDD;
    private static final int AXIS = 0x404040;
    private static final int TITLE = 15;
    private static final int LABEL = 13;
    private static final int TICK = 12;
    private static final int TOP = 40;
    private static final int LEFT = 84;
    private static final int EDGE = 20;
    private static final int BELOW = 48; // the x axis's numbers and label
    private static final int LEGEND_ROW = 20;
    private static final int SAMPLE = 26; // of a line, in the legend
    private static final int BAR = 16; // width of the colours' bar
    private static final int MOST_MARKED = 30; // points of a line that has markers

    private Chart() {}

    /**
     * A named line.
     *
     * @param error half height of the error bars; null for none
     * @param colour number of its colour
     * @param dash number of its stroke: 0 is solid
     */
    record Line(String name, double[] x, double[] y, double[] error, int colour, int dash) {}

    /** An axis. */
    record Axis(String label, boolean logarithmic, boolean fromZero) {
        Axis(String label) {
            this(label, false, false);
        }

        static Axis logarithmic(String label) {
            return new Axis(label, true, false);
        }

        static Axis fromZero(String label) {
            return new Axis(label, false, true);
        }
    }

    /** Lines over x, with markers when there are few points. */
    static String lines(String title, Axis x, Axis y, List<Line> lines) {
        int[] legend = legendRows(lines);
        int bottom = HEIGHT - BELOW - LEGEND_ROW * (legend.length == 0 ? 0 : legend[legend.length - 1] + 1);
        Scale across = Scale.over(
                lines.stream().flatMapToDouble(l -> Arrays.stream(l.x)).toArray(),
                x.logarithmic,
                x.fromZero,
                LEFT,
                WIDTH - EDGE);
        Scale up = Scale.over(
                lines.stream().flatMapToDouble(Chart::reach).toArray(), y.logarithmic, y.fromZero, bottom, TOP);
        Svg svg = new Svg(WIDTH, HEIGHT);
        svg.text(EDGE / 2.0, 24, Anchor.START, TITLE, true, title);
        axes(svg, across, up, across.ticks(), up.ticks(), true);
        svg.text((LEFT + WIDTH - EDGE) / 2.0, bottom + 38, Anchor.MIDDLE, LABEL, false, x.label);
        svg.upwards(20, (TOP + bottom) / 2.0, LABEL, y.label);
        lines.forEach(line -> draw(svg, line, across, up));
        legend(svg, lines, legend, bottom + BELOW + LEGEND_ROW / 2.0);
        return svg.document();
    }

    /** What a line's points and error bars reach. */
    private static DoubleStream reach(Line line) {
        double[] values = line.y.clone();
        if (line.error != null) {
            values = Arrays.copyOf(values, 3 * line.y.length);
            for (int i = 0; i < line.y.length; i++) {
                values[line.y.length + 2 * i] = line.y[i] - line.error[i];
                values[line.y.length + 2 * i + 1] = line.y[i] + line.error[i];
            }
        }
        return Arrays.stream(values);
    }

    private static void draw(Svg svg, Line line, Scale across, Scale up) {
        int[] shown = IntStream.range(0, line.x.length)
                .filter(i -> Scale.shows(line.x[i], across.logarithmic()) && Scale.shows(line.y[i], up.logarithmic()))
                .toArray();
        double[] x =
                Arrays.stream(shown).mapToDouble(i -> across.place(line.x[i])).toArray();
        double[] y = Arrays.stream(shown).mapToDouble(i -> up.place(line.y[i])).toArray();
        int colour = COLOURS[line.colour % COLOURS.length];
        for (int i = 0; i < shown.length && line.error != null; i++) {
            double error = line.error[shown[i]];
            if (error > 0 && Double.isFinite(error)) {
                double low = up.place(line.y[shown[i]] - error);
                double high = up.place(line.y[shown[i]] + error);
                svg.line(x[i], low, x[i], high, colour, 1);
                svg.line(x[i] - 3, low, x[i] + 3, low, colour, 1);
                svg.line(x[i] - 3, high, x[i] + 3, high, colour, 1);
            }
        }
        if (shown.length > 1) {
            svg.path(x, y, colour, 1.8, DASHES[line.dash % DASHES.length]);
        }
        for (int i = 0; i < shown.length && (line.x.length <= MOST_MARKED || shown.length == 1); i++) {
            svg.dot(x[i], y[i], 3.5, colour);
        }
    }

    /** The row of the legend that each line's name stands in. */
    private static int[] legendRows(List<Line> lines) {
        int[] rows = new int[lines.size()];
        double used = 0;
        for (int i = 0; i < rows.length; i++) {
            double needed = entryWidth(lines.get(i));
            boolean fits = used + needed <= WIDTH - 2 * EDGE;
            rows[i] = i == 0 ? 0 : rows[i - 1] + (fits ? 0 : 1);
            used = fits ? used + needed : needed;
        }
        return rows;
    }

    private static double entryWidth(Line line) {
        return SAMPLE + 8 + Svg.width(line.name, TICK) + 16;
    }

    private static void legend(Svg svg, List<Line> lines, int[] rows, double top) {
        for (int first = 0; first < rows.length; ) {
            int row = rows[first];
            int end = first;
            double width = 0;
            while (end < rows.length && rows[end] == row) {
                width += entryWidth(lines.get(end++));
            }
            double x = Math.max(EDGE, (WIDTH - width) / 2);
            double y = top + row * LEGEND_ROW;
            for (; first < end; first++) {
                Line line = lines.get(first);
                int colour = COLOURS[line.colour % COLOURS.length];
                svg.path(
                        new double[] {x, x + SAMPLE},
                        new double[] {y, y},
                        colour,
                        1.8,
                        DASHES[line.dash % DASHES.length]);
                if (line.x.length <= MOST_MARKED) {
                    svg.dot(x + SAMPLE / 2.0, y, 3.5, colour);
                }
                svg.text(x + SAMPLE + 8, y + 4, Anchor.START, TICK, false, line.name);
                x += entryWidth(line);
            }
        }
    }

    private static void axes(Svg svg, Scale x, Scale y, List<Scale.Tick> across, List<Scale.Tick> up, boolean grid) {
        for (Scale.Tick tick : across) {
            double at = x.place(tick.at());
            if (grid) {
                svg.line(at, y.from(), at, y.to(), GRID, 0.6);
            }
            svg.line(at, y.from(), at, y.from() + 4, AXIS, 1);
            svg.text(at, y.from() + 17, Anchor.MIDDLE, TICK, false, tick.text());
        }
        for (Scale.Tick tick : up) {
            double at = y.place(tick.at());
            if (grid) {
                svg.line(x.from(), at, x.to(), at, GRID, 0.6);
            }
            svg.line(x.from() - 4, at, x.from(), at, AXIS, 1);
            svg.text(x.from() - 7, at + 4, Anchor.END, TICK, false, tick.text());
        }
        svg.line(x.from(), y.from(), x.to(), y.from(), AXIS, 1);
        svg.line(x.from(), y.from(), x.from(), y.to(), AXIS, 1);
    }

    /** Rows of cells coloured from 0 to high; value[row][column]; NaN stays white. */
    static String heatMap(
            String title, String columnLabel, String rowLabel, double[][] value, double high, String valueLabel) {
        int rows = value.length;
        int columns = value[0].length;
        int height = Math.max(HEIGHT, 60 + 14 * rows);
        int bottom = height - BELOW;
        int right = WIDTH - 110;
        Scale across = new Scale(false, -0.5, columns - 0.5, LEFT, right);
        Scale up = new Scale(false, -0.5, rows - 0.5, bottom, TOP);
        Svg svg = new Svg(WIDTH, height);
        svg.text(EDGE / 2.0, 24, Anchor.START, TITLE, true, title);
        for (int r = 0; r < rows; r++) {
            double top = up.place(r + 0.5);
            for (int c = 0, end; c < columns; c = end) { // neighbours of one shade in one rectangle
                int shade = shade(value[r][c] / high);
                for (end = c + 1; end < columns && shade(value[r][end] / high) == shade; end++) {}
                if (shade >= 0) {
                    double left = across.place(c - 0.5);
                    svg.rectangle(left, top, across.place(end - 0.5) - left, up.place(r - 0.5) - top, viridis(shade));
                }
            }
        }
        axes(svg, across, up, across.wholeTicks(), up.wholeTicks(), false);
        svg.text((LEFT + right) / 2.0, bottom + 38, Anchor.MIDDLE, LABEL, false, columnLabel);
        svg.upwards(20, (TOP + bottom) / 2.0, LABEL, rowLabel);
        colourBar(svg, new Scale(false, 0, high, bottom, TOP), right + 24, valueLabel);
        return svg.document();
    }

    private static void colourBar(Svg svg, Scale scale, double x, String label) {
        double step = (scale.from() - scale.to()) / (SHADES + 1);
        for (int i = 0; i <= SHADES; i++) {
            svg.rectangle(x, scale.from() - (i + 1) * step, BAR, step + 0.5, viridis(i));
        }
        for (Scale.Tick tick : scale.ticks()) {
            double at = scale.place(tick.at());
            svg.line(x + BAR, at, x + BAR + 4, at, AXIS, 1);
            svg.text(x + BAR + 7, at + 4, Anchor.START, TICK, false, tick.text());
        }
        svg.upwards(x + BAR + 54, (scale.from() + scale.to()) / 2, LABEL, label);
    }

    /** 0 to SHADES; -1 of a value that is none. */
    private static int shade(double share) {
        return Double.isNaN(share) ? -1 : (int) Math.round(Math.clamp(share, 0, 1) * SHADES);
    }

    private static int viridis(int shade) {
        double at = (double) shade / SHADES * (VIRIDIS.length - 1);
        int i = Math.min(VIRIDIS.length - 2, (int) at);
        int colour = 0;
        for (int shift = 16; shift >= 0; shift -= 8) {
            int a = VIRIDIS[i] >> shift & 0xFF;
            int b = VIRIDIS[i + 1] >> shift & 0xFF;
            colour |= (int) Math.round(a + (at - i) * (b - a)) << shift;
        }
        return colour;
    }
}
