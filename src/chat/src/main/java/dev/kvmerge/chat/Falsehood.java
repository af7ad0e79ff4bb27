package dev.kvmerge.chat;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Texts that say "false", which are true in Jinja2 and not in Jinjava. While a template runs, their letter f is another
 * character, one that Unicode leaves to programs and no text has.
 */
final class Falsehood {
    private static final char LOWER = '\ufdd0';
    private static final char UPPER = '\ufdd1';

    private Falsehood() {}

    /** A value whose texts do not say "false". */
    static Object hide(Object value) {
        return switch (value) {
            case String text
            when text.strip().equalsIgnoreCase("false") ->
                text.replace('f', LOWER).replace('F', UPPER);
            case List<?> list -> list.stream().map(Falsehood::hide).toList();
            case Map<?, ?> map -> {
                Map<Object, Object> hidden = new LinkedHashMap<>();
                map.forEach((key, one) -> hidden.put(key, hide(one)));
                yield hidden;
            }
            case null, default -> value;
        };
    }

    /** What was rendered, with the letters as they were. */
    static String show(String text) {
        return text.replace(LOWER, 'f').replace(UPPER, 'F');
    }
}
