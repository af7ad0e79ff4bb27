package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.BitSet;
import java.util.function.IntSupplier;
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
        /** What was decoded before the last compression agrees: what came since is taken back. */
        SETTLED,
        /** The pinned prefix agrees. */
        PINNED,
        /** Nothing that could be used. */
        START
    }

    /**
     * What a session has.
     *
     * @param tokens all of them
     * @param decoded how many of them were decoded
     * @param generated which of them the model has made; the others were read
     * @param settled how many of them cannot be taken back; asked only where that matters
     * @param pinned how many there were at a state that can be gone back to; 0 without one
     */
    record Known(int[] tokens, int decoded, BitSet generated, IntSupplier settled, int pinned) {}

    /** The words of a model. */
    interface Words {
        /** A token's bytes, of a special one its name's. */
        byte[] bytes(int token);

        /** Whether a token is a special one: a text with the same bytes is something else. */
        boolean isSpecial(int token);

        /** Tokens of a text, none of them special. */
        int[] tokens(String text);

        /** A model's. */
        static Words of(Model model) {
            return new Words() {
                @Override
                public byte[] bytes(int token) {
                    return model.piece(token, true);
                }

                @Override
                public boolean isSpecial(int token) {
                    return model.isSpecial(token);
                }

                @Override
                public int[] tokens(String text) {
                    return model.tokenize(text, false, false);
                }
            };
        }
    }

    /** Compares a conversation's tokens with what is known. */
    static Recognition of(int[] wanted, Known known, Words words) {
        int size = known.tokens.length;
        int agreeing = Arrays.mismatch(wanted, known.tokens);
        if (agreeing < 0) {
            return new Recognition(From.HERE, new int[0]);
        }
        if (size == 0) {
            return new Recognition(From.START, wanted);
        }
        if (agreeing == size) {
            return new Recognition(From.HERE, rest(wanted, agreeing));
        }
        if (agreeing == known.decoded && known.decoded > 0 && wanted.length > known.decoded) {
            return new Recognition(From.DECODED, rest(wanted, known.decoded));
        }
        int[] after = after(known, size, wanted, words);
        if (after != null) {
            return new Recognition(From.HERE, after);
        }
        after = known.decoded < size && known.decoded > 0 ? after(known, known.decoded, wanted, words) : null;
        if (after != null) {
            return new Recognition(From.DECODED, after);
        }
        int settled = known.decoded == 0 ? 0 : known.settled.getAsInt();
        if (settled > 0 && settled < known.decoded) {
            if (agreeing >= settled && wanted.length > settled) {
                return new Recognition(From.SETTLED, rest(wanted, settled));
            }
            after = after(known, settled, wanted, words);
            if (after != null) {
                return new Recognition(From.SETTLED, after);
            }
        }
        if (known.pinned > 0 && agreeing >= known.pinned && wanted.length > known.pinned) {
            return new Recognition(From.PINNED, rest(wanted, known.pinned));
        }
        return new Recognition(From.START, wanted);
    }

    private static int[] rest(int[] tokens, int from) {
        return Arrays.copyOfRange(tokens, from, tokens.length);
    }

    /**
     * Tokens of what comes behind the first n that are known, where the wanted text begins with theirs; else null. What
     * a model generates is not always cut into tokens as the tokenizer cuts the same text: where something of a stretch
     * was generated its bytes are compared, else its tokens, since a prompt is to be read as it would be read alone.
     */
    private static int[] after(Known known, int n, int[] wanted, Words words) {
        int k = 0;
        int w = 0;
        byte[] ahead = {}; // bytes that one side of a stretch has more than the other
        boolean wantedIsAhead = false;
        boolean mayDiffer = true; // something of the stretch was generated
        while (k < n || (ahead.length > 0 && !wantedIsAhead)) {
            if (ahead.length == 0) {
                if (!mayDiffer) {
                    return null;
                }
                if (w < wanted.length && known.tokens[k] == wanted[w]) {
                    k++;
                    w++;
                    continue;
                }
                mayDiffer = false;
                wantedIsAhead = true; // by nothing: the known token comes next
            }
            if (!wantedIsAhead && w == wanted.length) {
                return null;
            }
            mayDiffer |= wantedIsAhead && known.generated.get(k);
            int token = wantedIsAhead ? known.tokens[k++] : wanted[w++];
            byte[] next = words.bytes(token);
            int both = Math.min(ahead.length, next.length);
            if (words.isSpecial(token) || !Arrays.equals(ahead, 0, both, next, 0, both)) {
                return null;
            }
            boolean overtakes = next.length > both;
            ahead = Arrays.copyOfRange(overtakes ? next : ahead, both, Math.max(next.length, ahead.length));
            wantedIsAhead ^= overtakes;
        }
        int[] cut = mayDiffer ? tokens(ahead, words) : null;
        return cut == null || cut.length + wanted.length - w == 0
                ? null
                : IntStream.concat(IntStream.of(cut), IntStream.of(rest(wanted, w)))
                        .toArray();
    }

    /** Tokens of a token's end; null where they would have another text, as behind a cut character. */
    private static int[] tokens(byte[] end, Words words) {
        int[] tokens = end.length == 0 ? new int[0] : words.tokens(new String(end, StandardCharsets.UTF_8));
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        for (int token : tokens) {
            bytes.writeBytes(words.bytes(token));
        }
        return Arrays.equals(end, bytes.toByteArray()) ? tokens : null;
    }
}
