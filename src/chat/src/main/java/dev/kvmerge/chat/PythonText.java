package dev.kvmerge.chat;

import dev.kvmerge.KvmergeException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.function.Predicate;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The methods of Python's strings that chat templates call. */
final class PythonText {
    private PythonText() {}

    /**
     * Calls a method.
     *
     * @throws KvmergeException if it is none of those that are known, or the arguments are not its own
     */
    static Object call(String text, String method, Object[] args) {
        return switch (method) {
            case "strip" -> stripEnd(stripStart(text, string(args, 0)), string(args, 0));
            case "lstrip" -> stripStart(text, string(args, 0));
            case "rstrip" -> stripEnd(text, string(args, 0));
            case "startswith" -> anyOf(args, text::startsWith);
            case "endswith" -> anyOf(args, text::endsWith);
            case "removeprefix" ->
                text.startsWith(needed(method, args, 0))
                        ? text.substring(string(args, 0).length())
                        : text;
            case "removesuffix" ->
                text.endsWith(needed(method, args, 0))
                        ? text.substring(0, text.length() - string(args, 0).length())
                        : text;
            case "upper" -> text.toUpperCase(Locale.ROOT);
            case "lower" -> text.toLowerCase(Locale.ROOT);
            case "capitalize" ->
                text.isEmpty()
                        ? text
                        : text.substring(0, 1).toUpperCase(Locale.ROOT)
                                + text.substring(1).toLowerCase(Locale.ROOT);
            case "title" -> title(text);
            case "split" -> split(text, string(args, 0), number(args, 1));
            case "rsplit" -> splitFromEnd(text, needed(method, args, 0), number(args, 1));
            case "splitlines" -> List.copyOf(text.lines().toList());
            case "join" -> join(text, strings(method, args));
            case "replace" -> replace(text, needed(method, args, 0), needed(method, args, 1), number(args, 2));
            case "format" -> format(text, args);
            case "find" -> (long) text.indexOf(needed(method, args, 0));
            case "rfind" -> (long) text.lastIndexOf(needed(method, args, 0));
            case "count" -> (long) split(text, needed(method, args, 0), -1).size() - 1;
            case "isdigit" -> !text.isEmpty() && text.chars().allMatch(Character::isDigit);
            case "isalpha" -> !text.isEmpty() && text.chars().allMatch(Character::isLetter);
            case "isalnum" -> !text.isEmpty() && text.chars().allMatch(Character::isLetterOrDigit);
            case "isspace" -> isSpace(text, 0);
            case "isupper" -> !text.equals(text.toLowerCase(Locale.ROOT)) && text.equals(text.toUpperCase(Locale.ROOT));
            case "islower" -> !text.equals(text.toUpperCase(Locale.ROOT)) && text.equals(text.toLowerCase(Locale.ROOT));
            default -> throw Expressions.lacks("method " + method + " of a text");
        };
    }

    /** Whether the rest of a text is white space, and there is some. */
    static boolean isSpace(String text, int from) {
        return from < text.length() && text.chars().skip(from).allMatch(PythonText::space);
    }

    private static boolean space(int c) { // str.isspace
        return Character.isWhitespace(c) || Character.isSpaceChar(c) || c == 0x85;
    }

    /** Without the characters at the start; null for white space. */
    static String stripStart(String text, String characters) {
        int i = 0;
        while (i < text.length() && strips(text.charAt(i), characters)) {
            i++;
        }
        return text.substring(i);
    }

    /** Without the characters at the end; null for white space. */
    static String stripEnd(String text, String characters) {
        int i = text.length();
        while (i > 0 && strips(text.charAt(i - 1), characters)) {
            i--;
        }
        return text.substring(0, i);
    }

    private static boolean strips(char c, String characters) {
        return characters == null ? space(c) : characters.indexOf(c) >= 0;
    }

    private static String title(String text) {
        StringBuilder out = new StringBuilder();
        boolean within = false;
        for (char c : text.toCharArray()) {
            out.append(within ? Character.toLowerCase(c) : Character.toUpperCase(c));
            within = Character.isLetter(c);
        }
        return out.toString();
    }

    /** At most so many cuts, -1 for all; at runs of white space where there is no separator. */
    private static List<Object> split(String text, String separator, long cuts) {
        List<Object> parts = new ArrayList<>();
        String rest = separator == null ? stripStart(text, null) : text;
        if (separator != null && separator.isEmpty()) {
            throw new KvmergeException("the chat template splits a text at an empty separator");
        }
        while (separator != null || !rest.isEmpty()) {
            int at = separator == null ? firstSpace(rest) : rest.indexOf(separator);
            if (at < 0 || cuts >= 0 && parts.size() >= cuts) {
                parts.add(separator == null ? stripEnd(rest, null) : rest);
                break;
            }
            parts.add(rest.substring(0, at));
            rest = separator == null ? stripStart(rest.substring(at), null) : rest.substring(at + separator.length());
        }
        return parts;
    }

    private static int firstSpace(String text) {
        for (int i = 0; i < text.length(); i++) {
            if (space(text.charAt(i))) {
                return i;
            }
        }
        return -1;
    }

    private static List<Object> splitFromEnd(String text, String separator, long cuts) {
        List<Object> parts = new ArrayList<>(split(text, separator, -1));
        while (cuts >= 0 && parts.size() > cuts + 1) {
            parts.set(0, parts.get(0) + separator + parts.remove(1));
        }
        return parts;
    }

    private static String join(String separator, List<String> all) {
        long length = (long) separator.length() * all.size();
        for (String one : all) {
            length += one.length();
        }
        checkLength(length);
        return String.join(separator, all);
    }

    private static String replace(String text, String from, String to, long times) {
        StringBuilder out = new StringBuilder();
        int done = 0;
        long left = times < 0 ? Long.MAX_VALUE : times;
        for (int i = 0; left > 0 && (i = text.indexOf(from, i)) >= 0; left--) {
            checkLength((long) out.length() + i - done + to.length());
            out.append(text, done, i).append(to);
            done = i;
            if (from.isEmpty() && i == text.length()) {
                break;
            }
            done += from.length();
            i += Math.max(1, from.length());
        }
        return out.append(text, done, text.length()).toString();
    }

    /** Refuses a text longer than any that a template may make. */
    static void checkLength(long length) {
        if (length > JinjaTemplate.MOST_OUTPUT) {
            throw new KvmergeException("the chat template makes a text of more than " + JinjaTemplate.MOST_OUTPUT
                    + " characters: give another with --chat-template-file, or a shorter conversation");
        }
    }

    /** Of a text with "{}" and "{0}" alone. */
    private static String format(String text, Object[] args) {
        StringBuilder out = new StringBuilder();
        Matcher found = Pattern.compile("\\{(\\d{0,3})}").matcher(text);
        int next = 0;
        int done = 0;
        while (found.find()) {
            int i = found.group(1).isEmpty() ? next++ : Integer.parseInt(found.group(1));
            out.append(text, done, found.start()).append(i < args.length ? TemplateFilters.string(args[i]) : "");
            checkLength(out.length());
            done = found.end();
        }
        return out.append(text, done, text.length()).toString();
    }

    private static boolean anyOf(Object[] args, Predicate<String> test) {
        Object what = args.length == 0 ? null : args[0];
        if (what instanceof Iterable<?> several) { // a tuple
            for (Object one : several) {
                if (test.test(String.valueOf(one))) {
                    return true;
                }
            }
            return false;
        }
        return test.test(needed("startswith", args, 0));
    }

    private static List<String> strings(String method, Object[] args) {
        if (args.length == 0 || !(args[0] instanceof Iterable<?> all)) {
            throw wrong(method);
        }
        List<String> out = new ArrayList<>();
        all.forEach(one -> out.add(String.valueOf(one)));
        return out;
    }

    private static String string(Object[] args, int i) {
        return i < args.length && args[i] != null ? args[i].toString() : null;
    }

    private static String needed(String method, Object[] args, int i) {
        if (i >= args.length || args[i] == null) {
            throw wrong(method);
        }
        return args[i].toString();
    }

    private static long number(Object[] args, int i) {
        return i < args.length && args[i] instanceof Number n ? n.longValue() : -1;
    }

    private static KvmergeException wrong(String method) {
        return new KvmergeException("the chat template calls '" + method + "' of a text without what it needs");
    }
}
