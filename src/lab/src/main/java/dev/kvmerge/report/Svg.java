package dev.kvmerge.report;

import java.util.Locale;

/**
 * An SVG document, written element by element. It needs no font on this machine: text stays text, whoever looks at it
 * draws it.
 */
final class Svg {
    /** Where the x of a text is. */
    enum Anchor {
        START,
        MIDDLE,
        END
    }

    private static final char FIRST = ' ';
    /** Thousandths of the font's size, from ' ' to '~': Helvetica's. */
    private static final short[] WIDTHS = {
        278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556,
        556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667,
        556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556,
        556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722,
        500, 500, 500, 334, 260, 334, 584
    };

    private static final int OTHER_WIDTH = 1000; // of a letter outside of ASCII: few are wider
    private static final double WIDER_FONTS =
            1.12; // DejaVu Sans, which Linux shows for sans-serif, is wider than Helvetica

    private final StringBuilder out = new StringBuilder();

    Svg(int width, int height) {
        out.append("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"")
                .append(width)
                .append("\" height=\"")
                .append(height)
                .append("\" viewBox=\"0 0 ")
                .append(width)
                .append(' ')
                .append(height)
                .append("\" font-family=\"Helvetica, Arial, sans-serif\">\n");
        rectangle(0, 0, width, height, 0xFFFFFF);
    }

    /** Units that a text takes, about: somewhat more than less. */
    static double width(String text, int size) {
        int sum = 0;
        for (int i = 0; i < text.length(); i++) {
            int at = text.charAt(i) - FIRST;
            sum += at >= 0 && at < WIDTHS.length ? WIDTHS[at] : OTHER_WIDTH;
        }
        return sum * size / 1000.0 * WIDER_FONTS;
    }

    void rectangle(double x, double y, double width, double height, int colour) {
        out.append("<rect");
        attribute("x", x);
        attribute("y", y);
        attribute("width", width);
        attribute("height", height);
        out.append(" fill=\"").append(hex(colour)).append("\" shape-rendering=\"crispEdges\"/>\n");
    }

    void line(double x1, double y1, double x2, double y2, int colour, double width) {
        out.append("<line");
        attribute("x1", x1);
        attribute("y1", y1);
        attribute("x2", x2);
        attribute("y2", y2);
        stroke(colour, width, "");
        out.append("/>\n");
    }

    /** @param dashes lengths, as "7 4"; empty for a solid line */
    void path(double[] x, double[] y, int colour, double width, String dashes) {
        out.append("<polyline fill=\"none\" stroke-linejoin=\"round\" points=\"");
        for (int i = 0; i < x.length; i++) {
            out.append(i == 0 ? "" : " ").append(number(x[i])).append(',').append(number(y[i]));
        }
        out.append('"');
        stroke(colour, width, dashes);
        out.append("/>\n");
    }

    void dot(double x, double y, double radius, int colour) {
        out.append("<circle");
        attribute("cx", x);
        attribute("cy", y);
        attribute("r", radius);
        out.append(" fill=\"").append(hex(colour)).append("\"/>\n");
    }

    void text(double x, double y, Anchor anchor, int size, boolean bold, String text) {
        text("", x, y, anchor, size, bold, text);
    }

    /** Text that reads upwards, its middle at x and y. */
    void upwards(double x, double y, int size, String text) {
        text(" transform=\"rotate(-90 " + number(x) + ' ' + number(y) + ")\"", x, y, Anchor.MIDDLE, size, false, text);
    }

    private void text(String more, double x, double y, Anchor anchor, int size, boolean bold, String text) {
        out.append("<text");
        attribute("x", x);
        attribute("y", y);
        attribute("font-size", size);
        out.append(
                        anchor == Anchor.START
                                ? ""
                                : " text-anchor=\"" + anchor.name().toLowerCase(Locale.ROOT) + '"')
                .append(bold ? " font-weight=\"bold\"" : "")
                .append(more)
                .append('>')
                .append(escaped(text))
                .append("</text>\n");
    }

    private void stroke(int colour, double width, String dashes) {
        out.append(" stroke=\"").append(hex(colour)).append('"');
        attribute("stroke-width", width);
        if (!dashes.isEmpty()) {
            out.append(" stroke-dasharray=\"").append(dashes).append('"');
        }
    }

    private void attribute(String name, double value) {
        out.append(' ').append(name).append("=\"").append(number(value)).append('"');
    }

    /** Two decimals, and those only where they are needed. */
    private static String number(double x) {
        long hundredths = Math.round(x * 100);
        String text = String.format(Locale.ROOT, "%.2f", hundredths / 100.0);
        return text.endsWith(".00") ? text.substring(0, text.length() - 3) : text;
    }

    private static String hex(int colour) {
        return String.format("#%06x", colour);
    }

    /** Also of what XML cannot hold at all: control characters, as a name may have them. */
    private static String escaped(String text) {
        return text.replaceAll("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]", "\ufffd")
                .replace("&", "&amp;")
                .replace("<", "&lt;")
                .replace(">", "&gt;");
    }

    String document() {
        return out + "</svg>\n";
    }
}
