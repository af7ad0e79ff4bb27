package dev.kvmerge.engine;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** Text of bytes that come in pieces: a token may be a part of a character. Bytes that are no UTF-8 become U+FFFD. */
final class Utf8 {
    private final CharsetDecoder decoder = StandardCharsets.UTF_8
            .newDecoder()
            .onMalformedInput(CodingErrorAction.REPLACE)
            .onUnmappableCharacter(CodingErrorAction.REPLACE);
    private byte[] rest = {}; // the beginning of a character

    /** The whole characters that are there now. */
    String add(byte[] piece) {
        ByteBuffer in = ByteBuffer.allocate(rest.length + piece.length);
        in.put(rest).put(piece).flip();
        CharBuffer out = CharBuffer.allocate(in.remaining() + 1);
        decoder.reset().decode(in, out, false);
        rest = Arrays.copyOfRange(in.array(), in.position(), in.limit());
        return out.flip().toString();
    }

    /** Bytes of a character that has not come whole. */
    byte[] rest() {
        return rest.clone();
    }

    /** Forgets them, or takes up others. */
    void begin(byte[] bytes) {
        rest = bytes.clone();
    }
}
