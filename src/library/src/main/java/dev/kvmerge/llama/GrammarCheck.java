package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Refuses grammars that llama.cpp would read for ever, or end the process over. It looks for left recursion along every
 * way in which rules begin with rules, and there may be more of those than can be counted.
 */
final class GrammarCheck {
    /** Most characters. */
    static final int LONGEST = 1 << 15;
    /** Most parentheses within each other: llama.cpp reads them by recursion. */
    static final int DEEPEST = 100;
    /** Most ways: a thousand take llama.cpp less than a millisecond. */
    static final long MOST_WAYS = 1_000_000;

    /**
     * Possessive where a group repeats: else the matcher recurses for each character. What does not end goes to the end
     * of the text: else each of its characters would be tried as a beginning, up to there.
     */
    private static final Pattern TOKEN = Pattern.compile(
            "(?<comment>#[^\\n]*)|(?<text>\"(?:\\\\.|[^\"\\\\])*+(?:\"|\\z))"
                    + "|(?<set>\\[(?:\\\\.|[^\\]\\\\])*+(?:\\]|\\z)|\\.|!?<[^>\\s]*+>?)"
                    + "|(?<define>(?<rule>[a-zA-Z0-9-]+)\\s*::=)|(?<name>[a-zA-Z0-9-]+)"
                    + "|(?<maybe>[*?]|\\{\\s*(?:0\\s*)?(?:,[^}]*+)?\\})|(?<repeat>\\+|\\{[^}]*+(?:\\}|\\z))"
                    + "|(?<sign>[()|])",
            Pattern.DOTALL);

    private final Map<String, List<String>> beginsWith = new HashMap<>();
    private final Map<String, Long> ways = new HashMap<>();

    private GrammarCheck() {}

    /** An alternative, or a group of them, that is being read. */
    private static final class Open {
        final boolean atStart; // nothing that must be there came before the group
        boolean empty; // nothing that must be there has come
        boolean mayBeEmpty; // an alternative of it

        Open(boolean atStart) {
            this.atStart = atStart;
            this.empty = atStart;
        }
    }

    static void check(String gbnf) {
        if (gbnf.length() > LONGEST) {
            throw refused("has " + gbnf.length() + " characters, and at most " + LONGEST + " are read");
        }
        if (gbnf.indexOf('\0') >= 0) {
            throw refused("has a character 0");
        }
        GrammarCheck check = new GrammarCheck();
        check.read(gbnf);
        long all = 0;
        for (String rule : check.beginsWith.keySet()) {
            all += check.waysOf(rule);
            if (all > MOST_WAYS) {
                throw refused("has rules that begin with each other in more than " + MOST_WAYS
                        + " ways: write alternatives that begin alike once");
            }
        }
    }

    private static KvmergeException.Usage refused(String why) {
        return new KvmergeException.Usage("the grammar (--grammar) " + why);
    }

    private void read(String gbnf) {
        List<String> begins = new ArrayList<>();
        Deque<Open> open = new ArrayDeque<>(List.of(new Open(true)));
        boolean before = true; // whether the alternative was empty before the last element, which may be repeated
        Matcher token = TOKEN.matcher(gbnf);
        while (token.find()) {
            Open now = open.getFirst();
            if (token.group("rule") != null) {
                begins = beginsWith.computeIfAbsent(token.group("rule"), r -> new ArrayList<>());
                open.clear();
                open.addFirst(new Open(true));
            } else if (token.group("name") != null) {
                before = now.empty;
                if (now.empty) { // it may be empty itself: what follows is looked at too
                    begins.add(token.group("name"));
                }
            } else if (token.group("text") != null) {
                before = now.empty;
                now.empty &= token.group("text").length() == 2;
            } else if (token.group("set") != null) {
                before = now.empty;
                now.empty = false;
            } else if (token.group("maybe") != null) {
                now.empty = before;
            } else if (token.group("sign") != null) {
                before = sign(token.group("sign").charAt(0), open, before);
            }
        }
    }

    /** Whether the alternative was empty before a group that has ended. */
    private static boolean sign(char sign, Deque<Open> open, boolean before) {
        Open now = open.getFirst();
        if (sign == '(') {
            if (open.size() > DEEPEST) {
                throw refused("has more than " + DEEPEST + " parentheses within each other");
            }
            open.addFirst(new Open(now.empty));
        } else if (sign == '|') {
            now.mayBeEmpty |= now.empty;
            now.empty = now.atStart;
        } else if (open.size() > 1) {
            open.removeFirst();
            Open outer = open.getFirst();
            boolean was = outer.empty;
            outer.empty = now.empty || now.mayBeEmpty;
            return was;
        }
        return before;
    }

    private long waysOf(String rule) {
        Long known = ways.get(rule);
        if (known != null) {
            return known;
        }
        ways.put(rule, 1L); // of itself: llama.cpp says so
        long all = 1;
        for (String first : beginsWith.getOrDefault(rule, List.of())) {
            all = Math.min(all + waysOf(first), Long.MAX_VALUE / 4);
        }
        ways.put(rule, all);
        return all;
    }
}
