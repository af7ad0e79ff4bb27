package dev.kvmerge.report;

import java.awt.BasicStroke;
import java.awt.Color;
import java.awt.Font;
import java.awt.geom.Rectangle2D;
import java.util.List;
import org.jfree.chart.JFreeChart;
import org.jfree.chart.axis.LogAxis;
import org.jfree.chart.axis.NumberAxis;
import org.jfree.chart.axis.NumberTickUnitSource;
import org.jfree.chart.axis.ValueAxis;
import org.jfree.chart.block.BlockBorder;
import org.jfree.chart.plot.XYPlot;
import org.jfree.chart.renderer.LookupPaintScale;
import org.jfree.chart.renderer.xy.XYBlockRenderer;
import org.jfree.chart.renderer.xy.XYErrorRenderer;
import org.jfree.chart.title.PaintScaleLegend;
import org.jfree.chart.title.TextTitle;
import org.jfree.chart.ui.RectangleEdge;
import org.jfree.chart.ui.RectangleInsets;
import org.jfree.data.xy.DefaultXYZDataset;
import org.jfree.data.xy.XYIntervalSeries;
import org.jfree.data.xy.XYIntervalSeriesCollection;
import org.jfree.svg.SVGGraphics2D;

/** Plots as one puts in a paper: white ground, few lines, colours that colour-blind readers can tell apart (Okabe and Ito 2008). */
final class Chart {
    private static final int WIDTH = 760;
    private static final int HEIGHT = 460;
    private static final Color[] COLOURS = {
        new Color(0x000000),
        new Color(0x0072B2),
        new Color(0xD55E00),
        new Color(0x009E73),
        new Color(0xCC79A7),
        new Color(0xE69F00),
        new Color(0x56B4E9),
        new Color(0x999999)
    };
    private static final float[][] DASHES = {{}, {7, 4}, {2, 3}, {10, 3, 2, 3}};
    private static final Color GRID = new Color(0xDDDDDD);
    private static final Font LABEL = new Font(Font.SANS_SERIF, Font.PLAIN, 13);
    private static final Font TICK = new Font(Font.SANS_SERIF, Font.PLAIN, 12);
    private static final Font TITLE = new Font(Font.SANS_SERIF, Font.BOLD, 15);

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
        XYIntervalSeriesCollection data = new XYIntervalSeriesCollection();
        boolean errors = lines.stream().anyMatch(l -> l.error != null);
        XYErrorRenderer renderer = new XYErrorRenderer();
        renderer.setDrawXError(false);
        renderer.setDrawYError(errors);
        renderer.setDefaultLinesVisible(true);
        renderer.setDrawSeriesLineAsPath(true);
        for (int s = 0; s < lines.size(); s++) {
            Line line = lines.get(s);
            XYIntervalSeries series = new XYIntervalSeries(line.name);
            for (int i = 0; i < line.x.length; i++) {
                if (Double.isFinite(line.y[i])) {
                    double e = line.error == null ? 0 : line.error[i];
                    series.add(line.x[i], line.x[i], line.x[i], line.y[i], line.y[i] - e, line.y[i] + e);
                }
            }
            data.addSeries(series);
            renderer.setSeriesPaint(s, COLOURS[line.colour % COLOURS.length]);
            renderer.setSeriesStroke(s, stroke(line.dash));
            renderer.setSeriesShapesVisible(s, line.x.length <= 30);
            renderer.setSeriesShape(s, new java.awt.geom.Ellipse2D.Double(-3.5, -3.5, 7, 7));
            renderer.setSeriesShapesFilled(s, true);
        }
        XYPlot plot = new XYPlot(data, axis(x), axis(y), renderer);
        return draw(title, plot, null, WIDTH, HEIGHT);
    }

    private static BasicStroke stroke(int dash) {
        float width = 1.8f;
        float[] pattern = DASHES[dash % DASHES.length];
        return pattern.length == 0
                ? new BasicStroke(width)
                : new BasicStroke(width, BasicStroke.CAP_BUTT, BasicStroke.JOIN_ROUND, 1, pattern, 0);
    }

    /** Rows of cells coloured from 0 to high; value[row][column]. */
    static String heatMap(
            String title, String columnLabel, String rowLabel, double[][] value, double high, String valueLabel) {
        int rows = value.length;
        int n = value[0].length;
        double[][] xyz = new double[3][rows * n];
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < n; c++) {
                xyz[0][r * n + c] = c;
                xyz[1][r * n + c] = r;
                xyz[2][r * n + c] = Math.max(0, Math.min(high, value[r][c]));
            }
        }
        DefaultXYZDataset data = new DefaultXYZDataset();
        data.addSeries("", xyz);
        LookupPaintScale scale = new LookupPaintScale(0, high + 1e-9, Color.LIGHT_GRAY);
        int steps = 64;
        for (int i = 0; i <= steps; i++) {
            scale.add(high * i / steps, viridis((double) i / steps));
        }
        XYBlockRenderer renderer = new XYBlockRenderer();
        renderer.setPaintScale(scale);
        renderer.setBlockWidth(1);
        renderer.setBlockHeight(1);
        NumberAxis x = (NumberAxis) axis(new Axis(columnLabel));
        NumberAxis y = (NumberAxis) axis(new Axis(rowLabel));
        x.setStandardTickUnits(NumberAxis.createIntegerTickUnits());
        y.setStandardTickUnits(NumberAxis.createIntegerTickUnits());
        x.setRange(-0.5, n - 0.5);
        y.setRange(-0.5, rows - 0.5);
        XYPlot plot = new XYPlot(data, x, y, renderer);
        NumberAxis bar = (NumberAxis) axis(new Axis(valueLabel));
        bar.setRange(0, high);
        PaintScaleLegend legend = new PaintScaleLegend(scale, bar);
        legend.setPosition(RectangleEdge.RIGHT);
        legend.setMargin(new RectangleInsets(5, 10, 25, 10));
        legend.setBackgroundPaint(Color.WHITE);
        return draw(title, plot, legend, WIDTH, Math.max(HEIGHT, 60 + 14 * rows));
    }

    private static ValueAxis axis(Axis axis) {
        if (axis.logarithmic) {
            LogAxis log = new LogAxis(axis.label);
            log.setStandardTickUnits(new NumberTickUnitSource());
            log.setNumberFormatOverride(new java.text.DecimalFormat(
                    "0.####", java.text.DecimalFormatSymbols.getInstance(java.util.Locale.ROOT)));
            return style(log);
        }
        NumberAxis number = new NumberAxis(axis.label);
        number.setAutoRangeIncludesZero(axis.fromZero);
        return style(number);
    }

    private static <A extends ValueAxis> A style(A axis) {
        axis.setLabelFont(LABEL);
        axis.setTickLabelFont(TICK);
        axis.setAxisLinePaint(Color.DARK_GRAY);
        return axis;
    }

    private static String draw(String title, XYPlot plot, PaintScaleLegend scale, int width, int height) {
        plot.setBackgroundPaint(Color.WHITE);
        plot.setDomainGridlinePaint(GRID);
        plot.setRangeGridlinePaint(GRID);
        plot.setOutlineVisible(false);
        JFreeChart chart = new JFreeChart(title, TITLE, plot, scale == null);
        chart.setBackgroundPaint(Color.WHITE);
        chart.setPadding(new RectangleInsets(8, 8, 8, 16));
        if (scale == null) {
            chart.getLegend().setFrame(BlockBorder.NONE);
            chart.getLegend().setItemFont(TICK);
        } else {
            chart.addSubtitle(scale);
        }
        TextTitle heading = chart.getTitle();
        heading.setHorizontalAlignment(org.jfree.chart.ui.HorizontalAlignment.LEFT);
        SVGGraphics2D svg = new SVGGraphics2D(width, height);
        chart.draw(svg, new Rectangle2D.Double(0, 0, width, height));
        return svg.getSVGDocument();
    }

    private static Color viridis(double x) {
        int[] anchors = {
            0x440154, 0x482878, 0x3e4989, 0x31688e, 0x26828e, 0x1f9e89, 0x35b779, 0x6ece58, 0xb5de2b, 0xfde725
        };
        double at = x * (anchors.length - 1);
        int i = Math.min(anchors.length - 2, (int) at);
        double f = at - i;
        Color a = new Color(anchors[i]);
        Color b = new Color(anchors[i + 1]);
        return new Color(
                (int) Math.round(a.getRed() + f * (b.getRed() - a.getRed())),
                (int) Math.round(a.getGreen() + f * (b.getGreen() - a.getGreen())),
                (int) Math.round(a.getBlue() + f * (b.getBlue() - a.getBlue())));
    }
}
