package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvmerge.engine.Recognition.From;
import dev.kvmerge.engine.Recognition.Part;
import java.nio.charset.StandardCharsets;
import java.util.List;
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
        public int[] tokens(String text, boolean special) {
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            int[] tokens = new int[bytes.length];
            for (int i = 0; i < tokens.length; i++) {
                tokens[i] = bytes[i] & 255;
            }
            return special && text.equals("<end>") ? new int[] {256} : tokens;
        }
    };

    private static final Part END = new Part(new int[] {256}, true);

    private static Part text(String text) {
        return new Part(WORDS.tokens(text, false), false);
    }

    private static int pair(char a, char b) {
        return 1 << 16 | a << 8 | b;
    }

    private static int[] tokens(Part... parts) {
        return Recognition.tokens(List.of(parts));
    }

    private static void check(From from, int[] fresh, int[] known, int decoded, int pinned, Part... parts) {
        Recognition seen = Recognition.of(List.of(parts), known, decoded, pinned, WORDS);
        assertEquals(from, seen.from());
        assertArrayEquals(fresh, seen.fresh());
    }

    @Test
    void onlyWhatIsNewIsRead() {
        int[] known = tokens(text("ab"), END);
        check(From.START, known, new int[0], 0, 0, text("ab"), END);
        check(From.HERE, new int[0], known, 3, 0, text("ab"), END);
        check(From.HERE, tokens(text("cd"), END), known, 3, 0, text("ab"), END, text("cd"), END);
        check(From.HERE, tokens(text("cd"), END), known, 2, 0, text("ab"), END, text("cd"), END);
    }

    @Test
    void aTokenThatWasNotDecodedIsForgottenIfItDisagrees() {
        int[] known = tokens(text("abx"));
        check(From.DECODED, tokens(END, text("c")), known, 2, 0, text("ab"), END, text("c"));
        check(From.START, tokens(text("ab"), END, text("c")), known, 3, 0, text("ab"), END, text("c"));
    }

    @Test
    void anEditedHistoryIsReadAgainFromThePinnedPrefixIfThatAgrees() {
        int[] known = tokens(text("sys"), END, text("one"), END, text("two"));
        check(From.PINNED, tokens(text("One"), END), known, known.length, 4, text("sys"), END, text("One"), END);
        check(From.PINNED, tokens(text("on")), known, known.length, 4, text("sys"), END, text("on"));
        check(From.START, tokens(text("Sys"), END), known, known.length, 4, text("Sys"), END);
        check(From.START, tokens(text("sys")), known, known.length, 4, text("sys"));
        check(From.START, tokens(text("sys"), END, text("One")), known, known.length, 0, text("sys"), END, text("One"));
    }

    @Test
    void aGeneratedTextIsRecognisedHoweverItWasCutIntoTokens() {
        int[] known = {'a', pair('b', 'c'), pair('d', 'e')};
        check(From.HERE, tokens(END, text("x")), known, 3, 0, text("abcde"), END, text("x"));
        check(From.HERE, tokens(text("f"), END), known, 3, 0, text("abcdef"), END);
        check(From.DECODED, tokens(text("dx"), END), known, 2, 0, text("abcdx"), END);
        check(From.START, tokens(text("abxde"), END), known, 3, 0, text("abxde"), END);
        // What was text is not taken for a special token of the same name.
        check(From.HERE, tokens(text("<end>"), END), known, 3, 0, text("abcde<end>"), END);
        // A cut character cannot be gone on from.
        int[] cut = {'a', 0xC3};
        check(
                From.START,
                tokens(text("a\u00e9b"), END),
                new int[] {pair('a', (char) 0xC3)},
                1,
                0,
                text("a\u00e9b"),
                END);
        check(From.HERE, new int[] {0xA9, 'b', 256}, cut, 2, 0, text("a\u00e9b"), END);
    }
}
