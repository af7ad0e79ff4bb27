package dev.kvmerge.chat;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.filter.Filter;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** The filters in which Jinjava differs from Jinja2 and transformers. */
final class TemplateFilters {
    private TemplateFilters() {}

    /** What a filter makes of a value, with its arguments. */
    private interface Body {
        Object of(Object value, Object[] args, Map<String, Object> named);
    }

    static List<Filter> all() {
        return List.of(
                filter("trim", (value, args, named) -> PythonText.call(string(value), "strip", args)),
                filter("tojson", (value, args, named) -> PythonJson.write(value, argument("indent", 1, args, named))),
                filter("replace", (value, args, named) -> PythonText.call(string(value), "replace", args)),
                filter("join", (value, args, named) -> join(elements(value), args, named)),
                filter("indent", TemplateFilters::indent),
                filter("string", (value, args, named) -> string(value)),
                filter(
                        Expressions.PREFIX + "printed",
                        (value, args, named) -> value instanceof Boolean ? string(value) : value),
                filter(Expressions.LACKS, (value, args, named) -> {
                    throw Expressions.lacks(args[0]);
                }),
                filter("safe", (value, args, named) -> value),
                filter("capitalize", (value, args, named) -> PythonText.call(string(value), "capitalize", args)),
                filter("title", (value, args, named) -> PythonText.call(string(value), "title", args)),
                filter("items", (value, args, named) -> value instanceof Map<?, ?> map ? items(map) : List.of()),
                filter("list", (value, args, named) -> elements(value)),
                filter("reverse", (value, args, named) -> {
                    if (value instanceof String text) {
                        return new StringBuilder(text).reverse().toString();
                    }
                    List<Object> all = new ArrayList<>(elements(value));
                    Collections.reverse(all);
                    return all;
                }),
                filter(
                        "first",
                        (value, args, named) -> elements(value).isEmpty()
                                ? null
                                : elements(value).getFirst()),
                filter(
                        "last",
                        (value, args, named) -> elements(value).isEmpty()
                                ? null
                                : elements(value).getLast()),
                filter(Expressions.PREFIX + "firsts", (value, args, named) -> elements(value).stream()
                        .map(one -> ((List<?>) one).getFirst())
                        .toList()));
    }

    private static Filter filter(String name, Body body) {
        return new Filter() {
            @Override
            public String getName() {
                return name;
            }

            @Override
            public Object filter(Object value, JinjavaInterpreter interpreter, String... args) {
                return body.of(value, args, Map.of());
            }

            @Override
            public Object filter(
                    Object value, JinjavaInterpreter interpreter, Object[] args, Map<String, Object> named) {
                return body.of(value, args, named);
            }
        };
    }

    private static String join(List<?> all, Object[] args, Map<String, Object> named) {
        Object attribute = argument("attribute", 1, args, named);
        List<String> texts = all.stream()
                .map(one -> attribute != null && one instanceof Map<?, ?> map ? map.get(attribute.toString()) : one)
                .map(TemplateFilters::string)
                .toList();
        return (String) PythonText.call(string(argument("d", 0, args, named)), "join", new Object[] {texts});
    }

    private static Object indent(Object value, Object[] args, Map<String, Object> named) {
        Object width = argument("width", 0, args, named);
        String space = width instanceof Number n ? spaces(n.longValue()) : width == null ? spaces(4) : width.toString();
        boolean first = Boolean.TRUE.equals(argument("first", 1, args, named));
        boolean blank = Boolean.TRUE.equals(argument("blank", 2, args, named));
        StringBuilder out = new StringBuilder();
        String between = "";
        for (String line : string(value).split("\n", -1)) {
            boolean indents = between.isEmpty() ? first : blank || !line.isEmpty();
            PythonText.checkLength((long) out.length() + space.length() + line.length());
            out.append(between).append(indents ? space : "").append(line);
            between = "\n";
        }
        return out.toString();
    }

    /** So many, of at most as many as anybody indents by. */
    static String spaces(long n) {
        return " ".repeat(Math.clamp(n, 0, 1000));
    }

    private static Object argument(String name, int at, Object[] args, Map<String, Object> named) {
        return named.containsKey(name) ? named.get(name) : at < args.length ? args[at] : null;
    }

    /** As Python prints it. */
    static String string(Object value) {
        return switch (value) {
            case null -> "";
            case Boolean truth -> truth ? "True" : "False";
            default -> value.toString();
        };
    }

    private static List<?> elements(Object value) {
        return switch (value) {
            case null -> List.of();
            case Map<?, ?> map -> List.copyOf(map.keySet());
            case Iterable<?> several -> {
                List<Object> all = new ArrayList<>();
                several.forEach(all::add);
                yield all;
            }
            case Object[] array -> List.of(array);
            default ->
                value.toString().codePoints().mapToObj(Character::toString).toList();
        };
    }

    /** A map's keys with their values. */
    static List<Object> items(Map<?, ?> map) {
        List<Object> all = new ArrayList<>();
        map.forEach((key, value) -> {
            List<Object> pair = new ArrayList<>();
            pair.add(key);
            pair.add(value);
            all.add(pair);
        });
        return all;
    }
}
