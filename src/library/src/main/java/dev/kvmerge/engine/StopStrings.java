package dev.kvmerge.engine;

import java.util.List;

/**
 * Ends a text before the first of some strings, wherever the pieces of the text are cut. The first is the one that is
 * whole first; of those that end together, the longest. Text that may be the beginning of one is held back.
 */
final class StopStrings {
    private final List<String> strings;
    private final StringBuilder held = new StringBuilder();
    private String met;

    StopStrings(List<String> strings) {
        this.strings = strings;
    }

    /** Takes more text; what can be delivered now. */
    String add(String text) {
        if (met != null) {
            return "";
        }
        int seen = held.length(); // of what was held back no string is whole
        held.append(text);
        for (int end = seen + 1; end <= held.length(); end++) {
            for (String stop : strings) {
                int start = end - stop.length();
                if (start >= 0 && (met == null || stop.length() > met.length()) && isAt(start, stop, stop.length())) {
                    met = stop;
                }
            }
            if (met != null) {
                String before = held.substring(0, end - met.length());
                held.setLength(0);
                return before;
            }
        }
        return release(firstHeld());
    }

    /** Where the longest end of the text begins that some string may begin with. */
    private int firstHeld() {
        int longest = strings.stream().mapToInt(String::length).max().orElse(0);
        for (int start = Math.max(0, held.length() - longest + 1); start < held.length(); start++) {
            int length = held.length() - start;
            for (String stop : strings) {
                if (length < stop.length() && isAt(start, stop, length)) {
                    return start;
                }
            }
        }
        return held.length();
    }

    private boolean isAt(int start, String stop, int length) {
        for (int i = 0; i < length; i++) {
            if (held.charAt(start + i) != stop.charAt(i)) {
                return false;
            }
        }
        return true;
    }

    private String release(int n) {
        String text = held.substring(0, n);
        held.delete(0, n);
        return text;
    }

    /** The text has ended without one: what was held back. */
    String end() {
        return release(held.length());
    }

    /** The string that ended the text, or null. */
    String met() {
        return met;
    }
}
