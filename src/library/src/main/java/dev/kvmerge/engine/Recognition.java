package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * What of a written conversation a session has read already.
 *
 * @param from where to go on from
 * @param fresh the tokens to read then
 */
record Recognition(From from, int[] fresh) {
    /** Where to go on from. */
    enum From {
        /** All that was read agrees. */
        HERE,
        /** What was decoded agrees, the token that was generated last does not. */
        DECODED,
        /** The pinned prefix agrees. */
        PINNED,
        /** Nothing that could be used. */
        START
    }

    /** The words of a model. */
    interface Words {
        /** A token's bytes, of a special one its name's. */
        byte[] bytes(int token);

        /** Tokens of a text, with special ones parsed or not. */
        int[] tokens(String text, boolean special);

        /** A model's. */
        static Words of(Model model) {
            return new Words() {
                @Override
                public byte[] bytes(int token) {
                    return model.piece(token, true);
                }

                @Override
                public int[] tokens(String text, boolean special) {
                    return model.tokenize(text, false, special);
                }
            };
        }

        /** The bytes of all. */
        default byte[] bytes(int[] tokens) {
            ByteArrayOutputStream all = new ByteArrayOutputStream();
            for (int token : tokens) {
                all.writeBytes(bytes(token));
            }
            return all.toByteArray();
        }
    }

    /** A written conversation's part as tokens. */
    record Part(int[] tokens, boolean special) {}

    /** The parts of a conversation, a BOS that its template has not written among them. */
    static List<Part> parts(ChatTemplate.Prompt prompt, Model model) {
        List<Part> parts = new ArrayList<>();
        int n = 0;
        for (ChatTemplate.Part part : prompt.parts()) {
            parts.add(new Part(model.tokenize(part.text(), false, part.special()), part.special()));
            n += parts.getLast().tokens.length;
        }
        int[] all = prompt.tokens(model);
        if (all.length > n) {
            parts.addFirst(new Part(Arrays.copyOf(all, all.length - n), true));
        }
        return parts;
    }

    /** All tokens. */
    static int[] tokens(List<Part> parts) {
        return parts.stream().flatMapToInt(p -> IntStream.of(p.tokens)).toArray();
    }

    /**
     * Compares.
     *
     * @param parts of the conversation
     * @param known tokens of the session
     * @param decoded how many of them were decoded
     * @param pinned how many there were at a state that can be gone back to; 0 without one
     */
    static Recognition of(List<Part> parts, int[] known, int decoded, int pinned, Words words) {
        int[] wanted = tokens(parts);
        int agreeing = Arrays.mismatch(wanted, known);
        if (agreeing < 0) {
            return new Recognition(From.HERE, new int[0]);
        }
        if (known.length == 0) {
            return new Recognition(From.START, wanted);
        }
        if (agreeing == known.length) {
            return new Recognition(From.HERE, rest(wanted, agreeing));
        }
        if (agreeing == decoded && decoded > 0 && wanted.length > decoded) {
            return new Recognition(From.DECODED, rest(wanted, decoded));
        }
        // What a model generates is not always cut into tokens as the tokenizer cuts the same text.
        int[] after = after(words.bytes(known), parts, words);
        if (after != null) {
            return new Recognition(From.HERE, after);
        }
        after = decoded < known.length && decoded > 0
                ? after(words.bytes(Arrays.copyOf(known, decoded)), parts, words)
                : null;
        if (after != null) {
            return new Recognition(From.DECODED, after);
        }
        if (pinned > 0 && agreeing >= pinned && wanted.length > pinned) {
            return new Recognition(From.PINNED, rest(wanted, pinned));
        }
        return new Recognition(From.START, wanted);
    }

    private static int[] rest(int[] tokens, int from) {
        return Arrays.copyOfRange(tokens, from, tokens.length);
    }

    /** Tokens of what comes behind these bytes, where the parts' text begins with them; else null. */
    private static int[] after(byte[] before, List<Part> parts, Words words) {
        int at = 0;
        for (int i = 0; i < parts.size(); i++) {
            byte[] text = words.bytes(parts.get(i).tokens);
            int n = Math.min(text.length, before.length - at);
            if (!Arrays.equals(before, at, at + n, text, 0, n)) {
                return null;
            }
            at += n;
            if (at == before.length) {
                int[] cut = cut(text, n, parts.get(i).special, words);
                int[] others = tokens(parts.subList(i + 1, parts.size()));
                return cut == null || cut.length + others.length == 0
                        ? null
                        : IntStream.concat(IntStream.of(cut), IntStream.of(others))
                                .toArray();
            }
        }
        return null;
    }

    /** Tokens of a text's end; null where they would have another text, as behind a cut character. */
    private static int[] cut(byte[] text, int from, boolean special, Words words) {
        byte[] end = Arrays.copyOfRange(text, from, text.length);
        int[] tokens = words.tokens(new String(end, StandardCharsets.UTF_8), special);
        return Arrays.equals(end, words.bytes(tokens)) ? tokens : null;
    }
}
