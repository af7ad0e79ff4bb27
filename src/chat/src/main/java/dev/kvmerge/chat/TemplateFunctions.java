package dev.kvmerge.chat;

import java.time.Clock;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

/** What transformers adds to the functions of Jinja2. Public because Jinjava calls them by reflection. */
public final class TemplateFunctions {
    private static final Map<Character, String> CODES = Map.ofEntries(
            Map.entry('a', "EEE"),
            Map.entry('A', "EEEE"),
            Map.entry('b', "MMM"),
            Map.entry('B', "MMMM"),
            Map.entry('d', "dd"),
            Map.entry('H', "HH"),
            Map.entry('I', "hh"),
            Map.entry('j', "DDD"),
            Map.entry('m', "MM"),
            Map.entry('M', "mm"),
            Map.entry('p', "a"),
            Map.entry('S', "ss"),
            Map.entry('y', "yy"),
            Map.entry('Y', "yyyy"),
            Map.entry('z', "xx"),
            Map.entry('Z', "zzz"));

    /** The clock; tests have one that stands. */
    static Clock clock = Clock.systemDefaultZone();

    private TemplateFunctions() {}

    /** {@code raise_exception}: refuses the conversation. */
    public static String raise(Object message) {
        throw new TemplateRefusal(String.valueOf(message));
    }

    /** {@code strftime_now}: the time by Python's strftime, in the C locale. */
    public static String now(String format) {
        return format(ZonedDateTime.now(clock), format);
    }

    /** A map of keys and values in turn. */
    public static Map<String, Object> map(Object... all) {
        Map<String, Object> map = new LinkedHashMap<>();
        for (int i = 0; i + 1 < all.length; i += 2) {
            map.put(String.valueOf(all[i]), all[i + 1]);
        }
        return map;
    }

    static String format(ZonedDateTime time, String format) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < format.length(); i++) {
            char c = format.charAt(i);
            if (c != '%' || i + 1 == format.length()) {
                out.append(c);
                continue;
            }
            char code = format.charAt(++i);
            boolean bare = code == '-' && i + 1 < format.length(); // "%-d": without a zero before
            if (bare) {
                code = format.charAt(++i);
            }
            String pattern = CODES.get(code);
            if (code == '%') {
                out.append('%');
            } else if (pattern == null) {
                throw Expressions.lacks("time as %" + code);
            } else {
                String text = time.format(DateTimeFormatter.ofPattern(pattern, Locale.US));
                out.append(bare ? text.replaceFirst("^0+(?=.)", "") : text);
            }
        }
        return out.toString();
    }
}
