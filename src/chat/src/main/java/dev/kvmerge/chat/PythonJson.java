package dev.kvmerge.chat;

import java.util.Map;

/** Python's json.dumps as transformers' {@code tojson} calls it: not escaped beyond what JSON wants, keys in order. */
final class PythonJson {
    private final StringBuilder out = new StringBuilder();
    private final int indent; // -1: on one line

    private PythonJson(int indent) {
        this.indent = indent;
    }

    /** A value as JSON; with an indent, a line for each element. */
    static String write(Object value, Object indent) {
        PythonJson json = new PythonJson(indent instanceof Number n ? n.intValue() : -1);
        json.value(value, 0);
        return json.out.toString();
    }

    private void value(Object value, int depth) {
        switch (value) {
            case null -> out.append("null");
            case Boolean truth -> out.append(truth);
            case Number number -> out.append(number);
            case Map<?, ?> map -> {
                out.append('{');
                String between = "";
                for (Map.Entry<?, ?> entry : map.entrySet()) {
                    out.append(between);
                    line(depth + 1);
                    string(String.valueOf(entry.getKey()));
                    out.append(": ");
                    value(entry.getValue(), depth + 1);
                    between = indent < 0 ? ", " : ",";
                }
                end('}', !map.isEmpty(), depth);
            }
            case Iterable<?> all -> {
                out.append('[');
                String between = "";
                for (Object one : all) {
                    out.append(between);
                    line(depth + 1);
                    value(one, depth + 1);
                    between = indent < 0 ? ", " : ",";
                }
                end(']', !between.isEmpty(), depth);
            }
            default -> string(value.toString());
        }
    }

    private void end(char bracket, boolean any, int depth) {
        if (any) {
            line(depth);
        }
        out.append(bracket);
    }

    private void line(int depth) {
        if (indent >= 0) {
            out.append('\n').append(TemplateFilters.spaces((long) indent * depth));
        }
    }

    private void string(String text) {
        PythonText.checkLength((long) out.length() + text.length());
        out.append('"');
        for (char c : text.toCharArray()) {
            switch (c) {
                case '"' -> out.append("\\\"");
                case '\\' -> out.append("\\\\");
                case '\n' -> out.append("\\n");
                case '\r' -> out.append("\\r");
                case '\t' -> out.append("\\t");
                case '\b' -> out.append("\\b");
                case '\f' -> out.append("\\f");
                default -> out.append(c < 0x20 ? String.format("\\u%04x", (int) c) : String.valueOf(c));
            }
        }
        out.append('"');
    }
}
