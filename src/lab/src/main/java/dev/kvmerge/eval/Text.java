package dev.kvmerge.eval;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.Model;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/**
 * A text to read.
 *
 * @param path the file
 * @param content its text, without one newline at the end, as llama.cpp's -f reads it
 * @param bytes of the file
 * @param sha256 of the file
 */
public record Text(Path path, String content, long bytes, String sha256) {
    private static final long MOST_BYTES = 1L << 29; // far more tokens than anyone waits for, and it fits a String

    /**
     * Reads a file.
     *
     * @throws KvmergeException if it is missing, empty, larger than 512 MiB, or not UTF-8
     */
    public static Text read(Path path) {
        if (!Files.exists(path)) {
            throw new KvmergeException("no text at " + path + ": give a file with -f, or a name from 'kvmerge models'");
        }
        byte[] bytes;
        try {
            if (Files.size(path) > MOST_BYTES) {
                throw new KvmergeException(
                        "the text " + path + " has " + Files.size(path) + " bytes, and kvmerge reads at most "
                                + MOST_BYTES + ": cut it, for instance with 'head -c 500M'");
            }
            bytes = Files.readAllBytes(path);
        } catch (IOException e) {
            throw new KvmergeException("cannot read the text " + path + ": " + e, e);
        }
        if (bytes.length == 0) {
            throw new KvmergeException("the text " + path + " is empty: give another with -f");
        }
        String other = otherEncoding(bytes);
        if (other != null) {
            throw notUtf8(path, "it looks like " + other, other, null);
        }
        for (int i = 0; i < bytes.length; i++) {
            if (bytes[i] == 0) {
                throw new KvmergeException("the text " + path + " has a zero byte (byte " + i
                        + "): it is no text, or has to be converted to UTF-8 with iconv");
            }
        }
        CharsetDecoder decoder = StandardCharsets.UTF_8
                .newDecoder()
                .onMalformedInput(CodingErrorAction.REPORT)
                .onUnmappableCharacter(CodingErrorAction.REPORT);
        ByteBuffer in = ByteBuffer.wrap(bytes);
        try {
            String content = decoder.decode(in).toString();
            if (content.endsWith("\n")) {
                content = content.substring(0, content.length() - 1);
            }
            return new Text(path, content, bytes.length, Hash.sha256(bytes));
        } catch (CharacterCodingException e) {
            throw notUtf8(path, "byte " + in.position(), "ISO-8859-1", e);
        }
    }

    /**
     * Tokens of a text that goes on: BOS in front where the model wants one, but no EOS behind, which some models ask
     * for and which says that nothing follows.
     */
    public static int[] tokens(Model model, String text) {
        int[] tokens = model.tokenize(text);
        int specials = model.tokenize("").length - (model.addsBos() ? 1 : 0);
        return Arrays.copyOf(tokens, tokens.length - specials);
    }

    /** The sentences of a text, each but the first with the space before it: joined they are the text. */
    static List<String> sentences(String text) {
        return List.of(text.split("(?<=[.!?])(?=\\s)"));
    }

    private static KvmergeException notUtf8(Path path, String why, String encoding, Exception cause) {
        return new KvmergeException(
                "the text " + path + " is not UTF-8 (" + why + "): convert it, for instance with 'iconv -f " + encoding
                        + " -t UTF-8'",
                cause);
    }

    /** The encoding of a text that has zero bytes or begins with the byte order mark of one; null of other texts. */
    private static String otherEncoding(byte[] bytes) {
        if (starts(bytes, 0xFF, 0xFE, 0, 0) || starts(bytes, 0, 0, 0xFE, 0xFF)) {
            return "UTF-32";
        }
        if (starts(bytes, 0xFF, 0xFE) || starts(bytes, 0xFE, 0xFF)) {
            return "UTF-16";
        }
        long[] zeros = new long[4]; // by place within four bytes
        for (int i = 0; i < bytes.length; i++) {
            zeros[i % 4] += bytes[i] == 0 ? 1 : 0;
        }
        long even = zeros[0] + zeros[2];
        long odd = zeros[1] + zeros[3];
        if (even + odd <= bytes.length / 8) { // of UTF-16, only spaces and line ends among letters of other scripts
            return null;
        }
        if (even + odd > bytes.length * 5L / 8) { // three zeros of four bytes
            return zeros[0] > zeros[3] ? "UTF-32BE" : "UTF-32LE";
        }
        return even > odd ? "UTF-16BE" : "UTF-16LE";
    }

    private static boolean starts(byte[] bytes, int... with) {
        for (int i = 0; i < with.length; i++) {
            if (i >= bytes.length || (bytes[i] & 0xFF) != with[i]) {
                return false;
            }
        }
        return true;
    }
}
