package dev.kvmerge.chat;

import dev.kvmerge.KvmergeException;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.HashMap;
import java.util.Map;

/**
 * A template as Jinjava is given it. Its text is cut as Jinja2's lexer does, with trim_blocks and lstrip_blocks as
 * transformers has them, and every piece of text becomes a variable; so do string literals, by {@link Expressions}.
 * What is left are tags and expressions, which the two engines read alike. Four things that Jinjava lacks are written
 * in other words: a loop's condition, {@code [::-1]}, {@code raw} and transformers' {@code generation}.
 */
final class TemplateSource {
    private static final int MOST = 1 << 20; // characters; the longest public templates have 30,000

    private final String source;
    private final StringBuilder out = new StringBuilder();
    private final Map<String, Object> constants = new HashMap<>();
    private final Expressions expressions = new Expressions(constants);
    private final Deque<String> open = new ArrayDeque<>(); // blocks
    private int at;
    private boolean lineStarts = true; // whether what is next is at the start of a line
    private boolean stripNext; // white space, as "-%}" asks
    private int filtered; // loops with a condition

    private TemplateSource(String source) {
        if (source.length() > MOST) {
            throw new KvmergeException("the chat template has " + source.length() + " characters, more than " + MOST);
        }
        String lines = source.replace("\r\n", "\n").replace('\r', '\n');
        this.source = lines.endsWith("\n") ? lines.substring(0, lines.length() - 1) : lines;
    }

    /** A template for Jinjava, and the variables that it needs. */
    record Rewritten(String text, Map<String, Object> constants) {}

    /**
     * Rewrites a template.
     *
     * @throws KvmergeException if it ends within a tag, or has what cannot be rewritten
     */
    static Rewritten rewrite(String template) {
        TemplateSource it = new TemplateSource(template);
        it.all();
        return new Rewritten(it.out.toString(), it.constants);
    }

    private void all() {
        while (at < source.length()) {
            int begin = next();
            if (begin < 0) {
                text(source.substring(at));
                return;
            }
            char kind = source.charAt(begin + 1);
            char sign = begin + 2 < source.length() ? source.charAt(begin + 2) : ' ';
            boolean signed = sign == '-' || sign == '+';
            String before = source.substring(at, begin);
            if (sign == '-') {
                text(PythonText.stripEnd(before, null));
            } else {
                text(signed || kind == '{' ? before : withoutIndent(before));
            }
            at = begin + (signed ? 3 : 2);
            if (kind == '#') {
                comment();
            } else {
                inside(kind);
            }
        }
    }

    private int next() {
        for (int i = source.indexOf('{', at); i >= 0 && i + 1 < source.length(); i = source.indexOf('{', i + 1)) {
            if ("{%#".indexOf(source.charAt(i + 1)) >= 0) {
                return i;
            }
        }
        return -1;
    }

    /** lstrip_blocks: white space between a line's start and a block goes. */
    private String withoutIndent(String text) {
        String stripped = stripNext ? PythonText.stripStart(text, null) : text;
        int line = stripped.lastIndexOf('\n') + 1;
        boolean starts = line > 0 || lineStarts && stripped.length() == text.length();
        return starts && PythonText.isSpace(stripped, line) ? stripped.substring(0, line) : stripped;
    }

    private void text(String text) {
        String rest = stripNext ? PythonText.stripStart(text, null) : text;
        stripNext = false;
        if (!rest.isEmpty()) {
            out.append("{{ ").append(expressions.constant(rest)).append(" }}");
        }
    }

    private void comment() {
        int end = source.indexOf("#}", at);
        if (end < 0) {
            throw new KvmergeException("the chat template ends within a comment: it is truncated");
        }
        boolean minus = end > at && source.charAt(end - 1) == '-';
        at = end + 2;
        after(minus, !(end > at && source.charAt(end - 1) == '+'));
    }

    /** What follows a tag's end: all white space goes, or the line's end, or nothing. */
    private void after(boolean minus, boolean trims) {
        stripNext = minus;
        lineStarts = false;
        if (!minus && trims && at < source.length() && source.charAt(at) == '\n') {
            at++;
            lineStarts = true;
        }
    }

    private void inside(char kind) {
        int end = end(kind == '{' ? "}}" : "%}");
        char sign = source.charAt(end - 1);
        boolean signed = end > at && (sign == '-' || sign == '+' && kind == '%');
        String content = source.substring(at, signed ? end - 1 : end).strip();
        at = end + 2;
        after(signed && sign == '-', kind == '%' && !(signed && sign == '+'));
        if (kind == '{') {
            out.append("{{ (").append(expressions.rewrite(content)).append(")|" + Expressions.PREFIX + "printed }}");
        } else if (content.equals("raw")) {
            raw();
        } else {
            tag(content);
        }
    }

    /** Where a tag ends: not within a string or brackets. */
    private int end(String mark) {
        int depth = 0;
        for (int i = at; i < source.length(); i++) {
            char c = source.charAt(i);
            if (c == '\'' || c == '"') {
                i = Expressions.endOfString(source, i);
            } else if (depth == 0 && source.startsWith(mark, i)) {
                return i;
            } else if (c == '(' || c == '[' || c == '{') {
                depth++;
            } else if (c == ')' || c == ']' || c == '}') {
                depth--;
            }
        }
        throw new KvmergeException("the chat template ends within a tag, after '"
                + source.substring(at, Math.min(source.length(), at + 40)).strip() + "': it is truncated");
    }

    private void raw() {
        int end = source.indexOf("endraw", at);
        int begin = end < 0 ? -1 : source.lastIndexOf("{%", end);
        int close = end < 0 ? -1 : source.indexOf("%}", end);
        if (begin < at || close < 0) {
            throw new KvmergeException("the chat template has a 'raw' without an 'endraw'");
        }
        String text = source.substring(at, begin);
        text(source.charAt(begin + 2) == '-' ? PythonText.stripEnd(text, null) : withoutIndent(text));
        at = close + 2;
        after(source.charAt(close - 1) == '-', source.charAt(close - 1) != '+');
    }

    private void tag(String content) {
        String name = content.split("[^a-z_]", 2)[0];
        String rest = content.substring(name.length()).strip();
        if (name.equals("generation") || name.equals("endgeneration")) {
            return; // what transformers marks for training
        }
        if (name.equals("else") && "for".equals(open.peek())) {
            throw new KvmergeException("the chat template has an 'else' of a 'for', which kvmerge does not run:"
                    + " give another template with --chat-template-file");
        }
        if (name.startsWith("end")) {
            open.poll();
        } else if (name.equals("for") || name.equals("if") || name.equals("macro") || name.equals("call")) {
            open.push(name);
        } else if (name.equals("set") && Expressions.find(rest, "=", 0) < 0) {
            open.push(name);
        }
        int condition = name.equals("for") ? Expressions.find(rest, "if", 0) : -1;
        if (condition >= 0) {
            filteredLoop(rest.substring(0, condition), rest.substring(condition + 2));
        } else {
            emit(name + ' ' + (name.equals("macro") ? expressions.words(rest) : expressions.rewrite(rest)));
        }
    }

    /** {@code for x in all if condition}: those for which it holds are collected first. */
    private void filteredLoop(String head, String condition) {
        int in = Expressions.find(head, "in", 0);
        if (in < 0) {
            throw new KvmergeException("the chat template has a 'for' without an 'in': for " + head);
        }
        String variables = expressions.rewrite(head.substring(0, in).strip());
        String holder = Expressions.PREFIX + "loop" + filtered++;
        emit("set " + holder + " = namespace(all=[])");
        emit("for " + variables + " in "
                + expressions.rewrite(head.substring(in + 2).strip()));
        emit("if " + expressions.rewrite(condition.strip()));
        emit("set " + holder + ".all = " + holder + ".all + [[" + variables.replaceAll("[()]", "") + "]]");
        emit("endif");
        emit("endfor");
        boolean single = variables.indexOf(',') < 0;
        emit("for " + variables + " in " + holder + ".all" + (single ? "|kvmerge_firsts" : ""));
    }

    private void emit(String tag) {
        out.append("{% ").append(tag.strip()).append(" %}");
    }
}
