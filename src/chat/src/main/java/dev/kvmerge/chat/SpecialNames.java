package dev.kvmerge.chat;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate.Part;
import dev.kvmerge.llama.Model;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The names of a model's special tokens, to tell those that a template writes from those that a content has. */
final class SpecialNames {
    private static final String SPACES = " \t\n\u000b\f\r"; // C's isspace, which llama.cpp asks

    /** A token's name, and whether white space beside it is a part of it. */
    private record Name(String text, boolean takesBefore, boolean takesBehind) {}

    private final Map<Character, List<Name>> byFirst = new HashMap<>(); // the longest first

    private SpecialNames() {}

    static SpecialNames of(Model model) {
        SpecialNames names = new SpecialNames();
        for (int token = 0; token < model.vocabularySize(); token++) {
            if (model.isSpecial(token)) {
                String text = new String(model.piece(token, true), StandardCharsets.UTF_8);
                if (!text.isEmpty()) {
                    names.byFirst
                            .computeIfAbsent(text.charAt(0), c -> new ArrayList<>())
                            .add(new Name(text, model.takesSpaceBefore(token), model.takesSpaceBehind(token)));
                }
            }
        }
        names.byFirst
                .values()
                .forEach(all -> all.sort(
                        Comparator.comparingInt((Name name) -> name.text().length())
                                .reversed()));
        return names;
    }

    /** The special token that is written here, or null. */
    private Name at(String text, int at) {
        for (Name name : byFirst.getOrDefault(text.charAt(at), List.of())) {
            if (text.startsWith(name.text(), at)) {
                return name;
            }
        }
        return null;
    }

    /** Whether a text ends with the beginning of a name, which starts here: what follows it could be the rest. */
    private boolean begins(String text, int at) {
        return byFirst.getOrDefault(text.charAt(at), List.of()).stream()
                .anyMatch(name -> name.text().startsWith(text.substring(at)));
    }

    /** Letters of private use that stand for others while a template runs. */
    final class Disguise {
        private final Map<Character, Character> masks = new HashMap<>();
        private final Map<Character, Character> faces = new HashMap<>();
        private final String used; // all texts: their letters are not masks
        private char next = '\ue000';

        private Disguise(String used) {
            this.used = used;
        }

        /** A content in which no special token is written. */
        String hide(String content) {
            StringBuilder out = new StringBuilder(content);
            for (int i = 0; i < content.length(); i++) {
                if (at(content, i) != null || begins(content, i)) {
                    out.setCharAt(i, mask(content.charAt(i)));
                }
            }
            return out.toString();
        }

        private char mask(char face) {
            return masks.computeIfAbsent(face, c -> {
                while (used.indexOf(next) >= 0) {
                    next++;
                }
                if (next > '\uf8ff') {
                    throw new KvmergeException(
                            "the conversation has every letter of private use (U+E000 to U+F8FF): leave some out");
                }
                faces.put(next, c);
                return next++;
            });
        }

        private String show(String text) {
            StringBuilder out = new StringBuilder(text);
            for (int i = 0; i < text.length(); i++) {
                Character face = faces.get(text.charAt(i));
                if (face != null) {
                    out.setCharAt(i, face);
                }
            }
            return out.toString();
        }
    }

    /** What hides the names in a conversation's contents. */
    Disguise disguise(String template, List<ChatMessage> messages) {
        StringBuilder used = new StringBuilder(template);
        messages.forEach(message -> used.append(message.content()));
        return new Disguise(used.toString());
    }

    /** A rendered text, cut at the special tokens in it, as llama.cpp cuts. */
    List<Part> parts(String rendered, Disguise disguise) {
        List<Part> parts = new ArrayList<>();
        int from = 0;
        for (int i = 0; i < rendered.length(); ) {
            Name name = at(rendered, i);
            if (name == null) {
                i++;
                continue;
            }
            int end = i;
            while (name.takesBefore() && end > from && SPACES.indexOf(rendered.charAt(end - 1)) >= 0) {
                end--;
            }
            add(parts, disguise.show(rendered.substring(from, end)));
            parts.add(new Part(name.text(), true));
            i += name.text().length();
            while (name.takesBehind() && i < rendered.length() && SPACES.indexOf(rendered.charAt(i)) >= 0) {
                i++;
            }
            from = i;
        }
        add(parts, disguise.show(rendered.substring(from)));
        return parts;
    }

    private static void add(List<Part> parts, String text) {
        if (!text.isEmpty()) {
            parts.add(new Part(text, false));
        }
    }
}
