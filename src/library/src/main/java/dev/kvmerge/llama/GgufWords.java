package dev.kvmerge.llama;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.BitSet;
import java.util.OptionalInt;

/**
 * What of a vocabulary llama.cpp takes for granted: where it is not so, a text ends the process. Its SentencePiece
 * tokenizer writes a character that is no token byte by byte, and looks for those tokens without asking whether they
 * are there.
 */
final class GgufWords {
    /** The type of a token that stands for a byte. */
    static final long BYTE_TYPE = 6;

    private static final int LONGEST = 6; // bytes of a word that is read for what it says
    private static final int ESCAPED_SPACE = 0x2581;

    private long[] hashes = {}; // of the texts: they are many
    private int texts;
    private final BitSet bytes = new BitSet(256); // that have a token
    private final BitSet characters = new BitSet(); // code points that are a token
    private final BitSet byteWords = new BitSet(); // tokens whose text is as "<0x0A>"
    private final BitSet byteTyped = new BitSet(); // tokens whose type says that they are bytes

    /** A token's text. */
    void add(int token, byte[] utf8) {
        if (utf8.length > 0) { // llama.cpp gives those without a text one of their own
            if (texts == hashes.length) {
                hashes = Arrays.copyOf(hashes, Math.max(1024, 2 * texts));
            }
            hashes[texts++] = hash(utf8);
        }
        if (utf8.length > LONGEST) {
            return;
        }
        String text = new String(utf8, StandardCharsets.UTF_8);
        if (text.matches("<0x[0-9A-F]{2}>")) {
            bytes.set(Integer.parseInt(text.substring(3, 5), 16));
            byteWords.set(token);
        } else if (!text.isEmpty() && text.codePointCount(0, text.length()) == 1) {
            characters.set(text.codePointAt(0));
            if (text.charAt(0) < 0x80) { // llama.cpp takes that for the byte too
                bytes.set(text.charAt(0));
            }
        }
    }

    /** Whether two tokens have the same text. */
    boolean hasTwins() {
        long[] sorted = Arrays.copyOf(hashes, texts);
        Arrays.sort(sorted);
        for (int i = 1; i < sorted.length; i++) {
            if (sorted[i] == sorted[i - 1]) {
                return true;
            }
        }
        return false;
    }

    /** FNV-1a, mixed: among 2^18 different texts, two are alike once in 10^9 vocabularies. */
    private static long hash(byte[] text) {
        long hash = 0xcbf29ce484222325L;
        for (byte b : text) {
            hash = (hash ^ (b & 0xff)) * 0x100000001b3L;
        }
        hash = (hash ^ hash >>> 33) * 0xff51afd7ed558ccdL;
        return hash ^ hash >>> 33;
    }

    /** A token's type. */
    void addType(int token, long type) {
        if (type == BYTE_TYPE) {
            byteTyped.set(token);
        }
    }

    /** A token that is said to be a byte, and whose text does not say which. */
    OptionalInt nameless() {
        BitSet wrong = (BitSet) byteTyped.clone();
        wrong.andNot(byteWords);
        return wrong.isEmpty() ? OptionalInt.empty() : OptionalInt.of(wrong.nextSetBit(0));
    }

    /** The first character of a text that has neither a token nor tokens for its bytes. */
    OptionalInt unknown(String text) {
        if (bytes.cardinality() == 256) {
            return OptionalInt.empty();
        }
        return ("\u2581" + text)
                .codePoints()
                .map(c -> c == ' ' ? ESCAPED_SPACE : c)
                .filter(c -> !characters.get(c) && !hasBytes(c))
                .findFirst();
    }

    private boolean hasBytes(int character) {
        if (character >= Character.MIN_SURROGATE && character <= Character.MAX_SURROGATE) {
            return bytes.get('?'); // what Java writes for half a pair
        }
        for (byte b : Character.toString(character).getBytes(StandardCharsets.UTF_8)) {
            if (!bytes.get(b & 0xff)) {
                return false;
            }
        }
        return true;
    }
}
