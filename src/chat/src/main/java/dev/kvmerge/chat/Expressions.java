package dev.kvmerge.chat;

import dev.kvmerge.KvmergeException;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;
import java.util.Map;

/**
 * Jinja2's expressions in Jinjava's words. Strings with anything but letters, digits and spaces become variables, so
 * that their escapes are Python's and no brace of theirs ends a tag; {@code none} becomes {@code null}.
 */
final class Expressions {
    /** What the variables' names begin with; a template's own cannot, since the names of Python's may not. */
    static final String PREFIX = "kvmerge_";

    /** The function that makes a map of keys and values in turn. */
    static final String MAP = PREFIX + "map";

    /** The filter and test that stands for one that is not there, since Jinjava takes no notice of that. */
    static final String LACKS = PREFIX + "lacks";

    private final Map<String, Object> constants;

    Expressions(Map<String, Object> constants) {
        this.constants = constants;
    }

    /** What a template is told that uses a filter, test or method that is not there. */
    static KvmergeException lacks(Object what) {
        return new KvmergeException("the chat template uses the " + what
                + ", which kvmerge does not have: give another template with --chat-template-file");
    }

    /** A variable that holds a text. */
    String constant(String text) {
        String name = PREFIX + "text" + constants.size();
        constants.put(name, text);
        return name;
    }

    /** The expression as Jinjava has it, on one line. */
    String rewrite(String expression) {
        return words(nested(expression));
    }

    /**
     * With brackets where the engines read them differently: around what is negated ({@code not a is b} is {@code (not
     * a) is b} to Jinjava), around the value of a named argument ({@code f(a=b - 1)} is {@code f((a=b) - 1)}), and
     * around a slice's ends.
     */
    private static String nested(String expression) {
        StringBuilder out = new StringBuilder();
        Deque<Integer> opened = new ArrayDeque<>(List.of(0)); // for each bracket, how many of ours stand open in it
        Deque<Character> kinds = new ArrayDeque<>(List.of(' '));
        String before = ""; // the word before
        for (int i = 0; i < expression.length(); i++) {
            char c = expression.charAt(i);
            if (c == '\'' || c == '"') {
                int end = endOfString(expression, i);
                out.append(expression, i, end + 1);
                i = end;
                before = "";
            } else if (Character.isJavaIdentifierStart(c)) {
                int end = i;
                while (end < expression.length() && Character.isJavaIdentifierPart(expression.charAt(end))) {
                    end++;
                }
                String word = expression.substring(i, end);
                boolean negates = word.equals("not")
                        && !before.equals("is")
                        && !expression.substring(end).stripLeading().startsWith("in ");
                if (word.matches("and|or|if|else")) {
                    close(out, opened);
                }
                out.append(word);
                if (negates) {
                    out.append(" (");
                    opened.push(opened.pop() + 1);
                }
                before = word;
                i = end - 1;
            } else if (c == '[' && isSlice(expression, i)) {
                int end = closing(expression, i);
                int colon = find(expression.substring(i + 1, end), ":", 0) + i + 1;
                out.append('[')
                        .append(bracketed(expression.substring(i + 1, colon)))
                        .append(':');
                out.append(bracketed(expression.substring(colon + 1, end))).append(']');
                i = end;
            } else if (c == '(' || c == '[' || c == '{') {
                opened.push(0);
                kinds.push(c);
                out.append(c == '{' ? MAP + "(" : String.valueOf(c));
            } else if (c == ')' || c == ']' || c == '}') {
                close(out, opened);
                if (opened.size() > 1) {
                    opened.pop();
                    kinds.pop();
                }
                String made = out.toString().stripTrailing();
                out.setLength(made.endsWith(",") ? made.length() - 1 : out.length());
                out.append(c == '}' ? ')' : c);
            } else if (c == ',' || c == ':') {
                close(out, opened);
                out.append(c == ':' && kinds.peek() == '{' ? ',' : c);
            } else if (c == '=' && opened.size() > 1 && isNaming(expression, i)) {
                out.append("=(");
                opened.push(opened.pop() + 1);
            } else {
                out.append(c);
            }
            before = Character.isWhitespace(c) || Character.isJavaIdentifierPart(c) ? before : "";
        }
        close(out, opened);
        return out.toString();
    }

    private static void close(StringBuilder out, Deque<Integer> opened) {
        out.append(")".repeat(opened.pop()));
        opened.push(0);
    }

    private static String bracketed(String expression) {
        return expression.isBlank() ? "" : "(" + nested(expression) + ")";
    }

    private static boolean isNaming(String expression, int at) {
        char before = at == 0 ? '=' : expression.charAt(at - 1);
        char behind = at + 1 == expression.length() ? '=' : expression.charAt(at + 1);
        return "=!<>".indexOf(before) < 0 && behind != '=';
    }

    /** Whether a bracket that opens here is "[a:b]" behind a value. */
    private static boolean isSlice(String expression, int at) {
        int end = closing(expression, at);
        String inside = expression.substring(at + 1, end);
        int colon = find(inside, ":", 0);
        return at > 0 && colon >= 0 && find(inside, ":", colon + 1) < 0;
    }

    /** Where the bracket that opens here closes. */
    private static int closing(String expression, int from) {
        int depth = 0;
        for (int i = from; i < expression.length(); i++) {
            char c = expression.charAt(i);
            if (c == '\'' || c == '"') {
                i = endOfString(expression, i);
            } else if (c == '(' || c == '[' || c == '{') {
                depth++;
            } else if ((c == ')' || c == ']' || c == '}') && --depth == 0) {
                return i;
            }
        }
        throw new KvmergeException("the chat template has a bracket that is not closed: " + expression);
    }

    /** The same without brackets around named values: a macro's parameters. */
    String words(String expression) {
        StringBuilder out = new StringBuilder();
        String before = ""; // the token before
        String earlier = ""; // and the one before that
        for (int i = 0; i < expression.length(); ) {
            char c = expression.charAt(i);
            if (Character.isWhitespace(c)) {
                out.append(' ');
                i++;
                continue;
            }
            String token;
            if (c == '\'' || c == '"') {
                StringBuilder value = new StringBuilder();
                int end = i;
                for (int next = i; next >= 0; next = nextString(expression, end)) { // 'a' 'b' is one string
                    end = endOfString(expression, next) + 1;
                    value.append(unescaped(expression.substring(next + 1, end - 1)));
                }
                i = end;
                token = literal(value.toString());
            } else if (Character.isJavaIdentifierStart(c)) {
                int end = i;
                while (end < expression.length() && Character.isJavaIdentifierPart(expression.charAt(end))) {
                    end++;
                }
                token = expression.substring(i, end);
                i = end;
                if (token.startsWith(PREFIX) && !token.equals(MAP)) {
                    throw new KvmergeException("the chat template uses the name '" + token + "', which is kvmerge's");
                }
                if (before.equals("|") && !JinjaTemplate.FILTERS.contains(token)) {
                    token = LACKS + "('filter " + token + "')|" + LACKS; // which takes the arguments that may follow
                } else if ((before.equals("is") || before.equals("not") && earlier.equals("is"))
                        && !token.equals("not")
                        && !TemplateTests.NAMES.contains(token)) {
                    token = LACKS + "('test " + token + "')";
                } else if (token.equalsIgnoreCase("none") && !before.matches("is|not|\\.|\\|")) {
                    token = "null";
                }
            } else if (c == '[' && reversal(expression, i) > 0) {
                i = reversal(expression, i);
                token = "|reverse|list";
            } else {
                token = c == '+' ? " + " : String.valueOf(c);
                i++;
            }
            out.append(token);
            earlier = before;
            before = token.strip();
        }
        return out.toString();
    }

    private String literal(String value) {
        return value.matches("[A-Za-z0-9_][A-Za-z0-9_ ]*") && !value.equalsIgnoreCase("false")
                ? "'" + value + "'"
                : constant(value);
    }

    private static int nextString(String expression, int from) {
        int i = from;
        while (i < expression.length() && Character.isWhitespace(expression.charAt(i))) {
            i++;
        }
        boolean string = i < expression.length() && (expression.charAt(i) == '\'' || expression.charAt(i) == '"');
        return string ? i : -1;
    }

    /** The end of "[::-1]", or -1. */
    private static int reversal(String expression, int from) {
        int close = expression.indexOf(']', from);
        boolean is = close > 0
                && expression.substring(from, close + 1).replace(" ", "").equals("[::-1]");
        return is ? close + 1 : -1;
    }

    /** Where a string that begins here ends: the place of its closing quote. */
    static int endOfString(String source, int from) {
        char quote = source.charAt(from);
        for (int i = from + 1; i < source.length(); i++) {
            if (source.charAt(i) == '\\') {
                i++;
            } else if (source.charAt(i) == quote) {
                return i;
            }
        }
        throw new KvmergeException("the chat template ends within a string: it is truncated");
    }

    /** Where a word or sign stands outside strings and brackets, or -1. */
    static int find(String expression, String word, int from) {
        int depth = 0;
        boolean letters = Character.isLetter(word.charAt(0));
        for (int i = from; i < expression.length(); i++) {
            char c = expression.charAt(i);
            if (c == '\'' || c == '"') {
                i = endOfString(expression, i);
            } else if (c == '(' || c == '[' || c == '{') {
                depth++;
            } else if (c == ')' || c == ']' || c == '}') {
                depth--;
            } else if (depth == 0
                    && expression.startsWith(word, i)
                    && (!letters || apart(expression, i - 1) && apart(expression, i + word.length()))) {
                return i;
            }
        }
        return -1;
    }

    private static boolean apart(String expression, int at) {
        return at < 0 || at >= expression.length() || !Character.isJavaIdentifierPart(expression.charAt(at));
    }

    /** A string's text: Python's escapes. */
    private static String unescaped(String text) {
        if (text.indexOf('\\') < 0) {
            return text;
        }
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c != '\\' || i + 1 == text.length()) {
                out.append(c);
                continue;
            }
            char escape = text.charAt(++i);
            int digits = escape == 'x' ? 2 : escape == 'u' ? 4 : escape == 'U' ? 8 : 0;
            if (digits > 0 && text.substring(i + 1).matches("(?s)[0-9a-fA-F]{" + digits + "}.*")) {
                out.appendCodePoint(Integer.parseUnsignedInt(text.substring(i + 1, i + 1 + digits), 16));
                i += digits;
                continue;
            }
            int known = "abfnrtv\\'\"\n".indexOf(escape);
            if (known < 0) {
                out.append('\\').append(escape); // Python leaves it
            } else if (escape != '\n') {
                out.append("\u0007\b\f\n\r\t\u000b\\'\"".charAt(known));
            }
        }
        return out.toString();
    }
}
