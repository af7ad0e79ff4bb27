package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvmerge.engine.Recognition.From;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.BitSet;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What of a conversation is read again, and what is not. */
@Tag("fast")
class RecognitionTest {
    /**
     * Tokens below 256 are bytes, 256 is a special one, above are pairs of letters, which the tokenizer never makes.
     */
    private static final Recognition.Words WORDS = new Recognition.Words() {
        @Override
        public byte[] bytes(int token) {
            return token < 256
                    ? new byte[] {(byte) token}
                    : token == 256
                            ? "<end>".getBytes(StandardCharsets.UTF_8)
                            : new byte[] {(byte) (token >> 8 & 255), (byte) token};
        }

        @Override
        public boolean isSpecial(int token) {
            return token == 256;
        }

        @Override
        public int[] tokens(String text) {
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            int[] tokens = new int[bytes.length];
            for (int i = 0; i < tokens.length; i++) {
                tokens[i] = bytes[i] & 255;
            }
            return tokens;
        }
    };

    private static final int[] END = {256};

    private static int[] text(String text) {
        return WORDS.tokens(text);
    }

    private static int pair(char a, char b) {
        return 1 << 16 | a << 8 | b;
    }

    private static int[] tokens(int[]... parts) {
        return Stream.of(parts).flatMapToInt(IntStream::of).toArray();
    }

    /** The first of the known tokens were read, the others generated. */
    private static void check(From from, int[] fresh, int[] known, int decoded, int pinned, int read, int[]... parts) {
        check(from, fresh, known, decoded, decoded, pinned, read, parts);
    }

    private static void check(
            From from, int[] fresh, int[] known, int decoded, int settled, int pinned, int read, int[]... parts) {
        BitSet generated = new BitSet();
        generated.set(read, known.length);
        Recognition seen = Recognition.of(
                tokens(parts), new Recognition.Known(known, decoded, generated, () -> settled, pinned), WORDS);
        assertEquals(from, seen.from());
        assertArrayEquals(fresh, seen.fresh());
    }

    @Test
    void onlyWhatIsNewIsRead() {
        int[] known = tokens(text("ab"), END);
        check(From.START, known, new int[0], 0, 0, 0, text("ab"), END);
        check(From.HERE, new int[0], known, 3, 0, 0, text("ab"), END);
        check(From.HERE, tokens(text("cd"), END), known, 3, 0, 0, text("ab"), END, text("cd"), END);
        check(From.HERE, tokens(text("cd"), END), known, 2, 0, 0, text("ab"), END, text("cd"), END);
    }

    @Test
    void aTokenThatWasNotDecodedIsForgottenIfItDisagrees() {
        int[] known = tokens(text("abx"));
        check(From.DECODED, tokens(END, text("c")), known, 2, 0, 0, text("ab"), END, text("c"));
        check(From.START, tokens(text("ab"), END, text("c")), known, 3, 0, 0, text("ab"), END, text("c"));
    }

    @Test
    void anEditedHistoryIsReadAgainFromThePinnedPrefixIfThatAgrees() {
        int[] known = tokens(text("sys"), END, text("one"), END, text("two"));
        check(From.PINNED, tokens(text("One"), END), known, known.length, 4, 0, text("sys"), END, text("One"), END);
        check(From.PINNED, tokens(text("on")), known, known.length, 4, 0, text("sys"), END, text("on"));
        check(From.START, tokens(text("Sys"), END), known, known.length, 4, 0, text("Sys"), END);
        check(From.START, tokens(text("sys")), known, known.length, 4, 0, text("sys"));
        check(
                From.START,
                tokens(text("sys"), END, text("One")),
                known,
                known.length,
                0,
                0,
                text("sys"),
                END,
                text("One"));
    }

    @Test
    void whatCameSinceTheLastCompressionIsTakenBackIfItDisagrees() {
        int[] known = tokens(text("sys"), END, text("one"), END, text("answer\nUser"));
        int n = known.length;
        int[] next = tokens(text("sys"), END, text("one"), END, text("answer"), END, text("two"));
        check(From.SETTLED, tokens(text("wer"), END, text("two")), known, n - 1, 11, 4, 8, next);
        check(From.SETTLED, tokens(END, text("two")), known, n, 14, 4, 8, next);
        check(From.PINNED, rest(next, 4), known, n, 15, 4, 8, next);
        check(From.PINNED, rest(next, 4), known, n, n, 4, 8, next); // it has just been compressed
        // The same question again: the last token is decoded anew, for its logits.
        int[] again = tokens(text("sys"), END, text("one"), END);
        check(From.SETTLED, END, known, n, 7, 4, 8, again);
        check(From.PINNED, rest(again, 4), known, n, 8, 4, 8, again);
        // What was generated is compared by its bytes.
        int[] pairs = {'q', pair('a', 'b'), 'c', 'x', 'y'};
        check(From.SETTLED, tokens(text("c"), END), pairs, 5, 2, 0, 1, text("qabc"), END);
        check(From.START, tokens(text("qab!"), END), pairs, 5, 3, 0, 1, text("qab!"), END);
    }

    private static int[] rest(int[] tokens, int from) {
        return Arrays.copyOfRange(tokens, from, tokens.length);
    }

    @Test
    void aGeneratedTextIsRecognisedHoweverItWasCutIntoTokens() {
        int[] known = {'a', pair('b', 'c'), pair('d', 'e')};
        check(From.HERE, tokens(END, text("x")), known, 3, 0, 0, text("abcde"), END, text("x"));
        check(From.HERE, tokens(text("f"), END), known, 3, 0, 0, text("abcdef"), END);
        check(From.DECODED, tokens(text("dx"), END), known, 2, 0, 0, text("abcdx"), END);
        check(From.START, tokens(text("abxde"), END), known, 3, 0, 0, text("abxde"), END);
        // What was text is not taken for a special token of the same name.
        check(From.HERE, tokens(text("<end>"), END), known, 3, 0, 0, text("abcde<end>"), END);
        // A cut character is gone on from by its other bytes' tokens, where they are tokens of their own.
        int[] cut = {'a', 0xC3};
        check(From.HERE, new int[] {0xA9, 'b', 256}, cut, 2, 0, 0, text("a\u00e9b"), END);
        int[] pair = {pair('a', (char) 0xC3)};
        check(From.HERE, new int[] {0xA9, 'b', 256}, pair, 1, 0, 0, text("a\u00e9b"), END);
        int[] whole = {'a', pair((char) 0xC3, (char) 0xA9), 'b', 256};
        check(From.START, whole, pair, 1, 0, 0, whole);
        // What follows what was generated was read, and agrees.
        int[] more = {'a', pair('b', 'c'), 256, 'x'};
        check(From.HERE, tokens(text("y"), END), more, 4, 0, 1, text("abc"), END, text("xy"), END);
    }

    /** A prompt that goes on in the middle of its last token is read as it would be read alone. */
    @Test
    void aTextThatWasReadIsRecognisedByItsTokensAlone() {
        int[] known = {'d', pair('f', 'o')};
        int[] wanted = {'d', 'f', pair('o', 'o')};
        check(From.START, wanted, known, 2, 0, 2, wanted);
        check(From.HERE, text("o"), known, 2, 0, 1, wanted);
        int[] answered = {'d', pair('f', 'o'), 'o'};
        check(From.HERE, text("x"), answered, 3, 0, 2, wanted, text("x"));
        check(From.PINNED, tokens(new int[] {'f', pair('o', 'o')}), known, 2, 1, 2, wanted);
    }

    @Test
    void aSpecialTokenIsAnotherThanATextOfItsName() {
        for (int read = 0; read < 8; read += 7) {
            int[] special = tokens(text("ab"), END, text("c"));
            int[] literal = text("ab<end>c");
            check(From.START, tokens(literal, END), special, 4, 0, Math.min(read, 4), literal, END);
            check(From.START, tokens(special, END), literal, 8, 0, read, special, END);
        }
        int[] pairs = {'a', pair('b', '<'), pair('e', 'n'), pair('d', '>')};
        check(From.START, tokens(text("ab"), END, text("c")), pairs, 4, 0, 0, text("ab"), END, text("c"));
        check(From.HERE, text("c"), pairs, 4, 0, 0, text("ab<end>c"));
    }
}
