package dev.kvmerge.attention;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Reads the JSON that a calibration is kept as, and no other: an object of name, layers, kvHeads, keyDimension, decay,
 * massPower and weights, each once, in any order. Files of 0.1 have no massPower, which was 1 then. The library depends
 * on no JSON parser.
 */
final class CalibrationText {
    /** What is wrong with a text, and where. */
    static final class Malformed extends Exception {
        private static final long serialVersionUID = 1;

        Malformed(String message) {
            super(message);
        }
    }

    private final String text;
    private int at;
    private String name;
    private Integer layers;
    private Integer kvHeads;
    private Integer keyDimension;
    private Double decay;
    private Double massPower;
    private float[][] weights;

    private CalibrationText(String text) {
        this.text = text;
    }

    /**
     * The calibration of a text.
     *
     * @throws Malformed if it is not such an object
     * @throws dev.kvmerge.KvmergeException if its numbers do not make a calibration
     */
    static Calibration parse(String text) throws Malformed {
        return new CalibrationText(text).calibration();
    }

    private Calibration calibration() throws Malformed {
        expect('{');
        do {
            field();
        } while (next(','));
        expect('}');
        if (peek() != 0) {
            throw malformed("something follows the end");
        }
        if (layers == null || kvHeads == null || keyDimension == null || decay == null || weights == null) {
            throw new Malformed("it lacks one of layers, kvHeads, keyDimension, decay and weights");
        }
        return new Calibration(name, layers, kvHeads, keyDimension, decay, massPower == null ? 1 : massPower, weights);
    }

    private void field() throws Malformed {
        String field = string();
        expect(':');
        switch (field) {
            case "name" -> name = once(field, name, string());
            case "layers" -> layers = once(field, layers, count());
            case "kvHeads" -> kvHeads = once(field, kvHeads, count());
            case "keyDimension" -> keyDimension = once(field, keyDimension, count());
            case "decay" -> decay = once(field, decay, Double.valueOf(number()));
            case "massPower" -> massPower = once(field, massPower, Double.valueOf(number()));
            case "weights" -> weights = once(field, weights, rows());
            default -> throw malformed("the field '" + field + "' is unknown");
        }
    }

    private <T> T once(String field, T before, T value) throws Malformed {
        if (before != null) {
            throw malformed("the field '" + field + "' is there twice");
        }
        return value;
    }

    private float[][] rows() throws Malformed {
        List<float[]> rows = new ArrayList<>();
        expect('[');
        do {
            rows.add(row());
        } while (next(','));
        expect(']');
        return rows.toArray(float[][]::new);
    }

    private float[] row() throws Malformed {
        float[] row = new float[64];
        int n = 0;
        expect('[');
        do {
            if (n == row.length) {
                row = Arrays.copyOf(row, 2 * n);
            }
            row[n++] = Float.parseFloat(number());
        } while (next(','));
        expect(']');
        return Arrays.copyOf(row, n);
    }

    private int count() throws Malformed {
        String number = number();
        if (!number.matches("[1-9][0-9]{0,5}")) {
            throw malformed("'" + number + "' is no count of layers, heads or elements");
        }
        return Integer.parseInt(number);
    }

    /** The characters of a number as JSON writes it. */
    private String number() throws Malformed {
        peek();
        int from = at;
        accept('-');
        int whole = digits();
        boolean leadingZero = whole > 1 && text.charAt(at - whole) == '0';
        boolean fine = whole > 0 && !leadingZero;
        if (fine && accept('.')) {
            fine = digits() > 0;
        }
        if (fine && (accept('e') || accept('E'))) {
            if (!accept('+')) {
                accept('-');
            }
            fine = digits() > 0;
        }
        if (!fine) {
            at = from;
            throw malformed("a number is expected");
        }
        return text.substring(from, at);
    }

    private int digits() {
        int from = at;
        while (at < text.length() && text.charAt(at) >= '0' && text.charAt(at) <= '9') {
            at++;
        }
        return at - from;
    }

    private String string() throws Malformed {
        expect('"');
        StringBuilder out = new StringBuilder();
        while (at < text.length() && text.charAt(at) != '"') {
            char c = text.charAt(at++);
            if (c < ' ') {
                throw malformed("a control character is in a string");
            }
            out.append(c == '\\' ? escaped() : c);
        }
        if (!accept('"')) {
            throw malformed("a string does not end");
        }
        return out.toString();
    }

    private char escaped() throws Malformed {
        char c = at < text.length() ? text.charAt(at++) : 0;
        int known = "\"\\/bfnrt".indexOf(c);
        if (known >= 0) {
            return "\"\\/\b\f\n\r\t".charAt(known);
        }
        if (c != 'u' || at + 4 > text.length() || !text.substring(at, at + 4).matches("[0-9a-fA-F]{4}")) {
            throw malformed("an escape is unknown");
        }
        at += 4;
        return (char) Integer.parseInt(text.substring(at - 4, at), 16);
    }

    /** The next character that is no space; 0 at the end. */
    private char peek() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        return at < text.length() ? text.charAt(at) : 0;
    }

    private boolean next(char c) {
        return peek() == c && accept(c);
    }

    private boolean accept(char c) {
        boolean there = at < text.length() && text.charAt(at) == c;
        at += there ? 1 : 0;
        return there;
    }

    private void expect(char c) throws Malformed {
        if (!next(c)) {
            throw malformed("'" + c + "' is expected");
        }
    }

    private Malformed malformed(String what) {
        int line = (int) text.substring(0, at).chars().filter(c -> c == '\n').count() + 1;
        return new Malformed(what + " in line " + line + ", at character " + at);
    }
}
