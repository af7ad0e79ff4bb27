package dev.kvmerge.eval;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * A text to read.
 *
 * @param path the file
 * @param content its text, without one newline at the end, as llama.cpp's -f reads it
 * @param sha256 of the file
 */
public record Text(Path path, String content, String sha256) {
    /**
     * Reads a file.
     *
     * @throws KvmergeException if it is missing, empty, or not UTF-8
     */
    public static Text read(Path path) {
        if (!Files.exists(path)) {
            throw new KvmergeException("no text at " + path + ": give a file with -f, or a name from 'kvmerge models'");
        }
        byte[] bytes;
        try {
            bytes = Files.readAllBytes(path);
        } catch (IOException e) {
            throw new KvmergeException("cannot read the text " + path + ": " + e, e);
        }
        if (bytes.length == 0) {
            throw new KvmergeException("the text " + path + " is empty: give another with -f");
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
            return new Text(path, content, Hash.sha256(bytes));
        } catch (CharacterCodingException e) {
            throw new KvmergeException(
                    "the text " + path + " is not UTF-8 (byte " + in.position()
                            + "): convert it, for instance with 'iconv -f ISO-8859-1 -t UTF-8'",
                    e);
        }
    }
}
