package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

/**
 * The bytes of a GGUF file from its start: numbers and strings, little endian, each held against what is left of the
 * file.
 */
final class GgufReader {
    private static final int BUFFER = 1 << 16;

    private final FileChannel file;
    private final Path path;
    private final long size;
    private final ByteBuffer buffer =
            ByteBuffer.allocate(BUFFER).order(ByteOrder.LITTLE_ENDIAN).limit(0);
    private long bufferEnd; // the file's offset behind the buffer

    GgufReader(FileChannel file, Path path) throws IOException {
        this.file = file;
        this.path = path;
        this.size = file.size();
    }

    long size() {
        return size;
    }

    /** Bytes read so far. */
    long position() {
        return bufferEnd - buffer.remaining();
    }

    long remaining() {
        return size - position();
    }

    int int32(String what) throws IOException {
        return fill(4, what).getInt();
    }

    long int64(String what) throws IOException {
        return fill(8, what).getLong();
    }

    /** A scalar of 1, 2, 4 or 8 bytes. */
    long integer(int bytes, boolean signed, String what) throws IOException {
        fill(bytes, what);
        return switch (bytes) {
            case 1 -> signed ? buffer.get() : buffer.get() & 0xff;
            case 2 -> signed ? buffer.getShort() : buffer.getShort() & 0xffff;
            case 4 -> signed ? buffer.getInt() : buffer.getInt() & 0xffffffffL;
            default -> buffer.getLong();
        };
    }

    /** A string of at most so many bytes. */
    String string(int most, String what) throws IOException {
        return new String(bytes(most, what), StandardCharsets.UTF_8);
    }

    /** A string of at most so many bytes; null of a longer one, which is passed over. */
    String stringOrSkip(int most, String what) throws IOException {
        long length = length(what);
        if (length > most) {
            skip(length, what);
            return null;
        }
        return new String(next((int) length, what), StandardCharsets.UTF_8);
    }

    /** The bytes of a string of at most so many. */
    byte[] bytes(int most, String what) throws IOException {
        long length = length(what);
        if (length > most) {
            throw refused(what + " has " + length + " bytes, more than " + most);
        }
        return next((int) length, what);
    }

    private long length(String what) throws IOException {
        long length = int64(what);
        if (length < 0 || length > remaining()) {
            throw truncated(what + ", a string of " + Long.toUnsignedString(length) + " bytes");
        }
        return length;
    }

    private byte[] next(int length, String what) throws IOException {
        byte[] bytes = new byte[length];
        for (int at = 0; at < bytes.length; ) {
            fill(1, what);
            int n = Math.min(buffer.remaining(), bytes.length - at);
            buffer.get(bytes, at, n);
            at += n;
        }
        return bytes;
    }

    void skip(long bytes, String what) throws IOException {
        if (bytes < 0 || bytes > remaining()) {
            throw truncated(what);
        }
        if (bytes <= buffer.remaining()) {
            buffer.position(buffer.position() + (int) bytes);
        } else {
            bufferEnd = position() + bytes;
            buffer.limit(0);
        }
    }

    private ByteBuffer fill(int bytes, String what) throws IOException {
        if (buffer.remaining() >= bytes) {
            return buffer;
        }
        if (remaining() < bytes) {
            throw truncated(what);
        }
        buffer.compact();
        while (buffer.position() < bytes) {
            int n = file.read(buffer, bufferEnd);
            if (n <= 0) {
                throw truncated(what);
            }
            bufferEnd += n;
        }
        return buffer.flip();
    }

    KvmergeException truncated(String what) {
        return new KvmergeException(
                "the model " + path + " is truncated: its " + size + " bytes end before " + what + ": fetch it again");
    }

    /** What is wrong with the file, and that another is needed. */
    KvmergeException refused(String why) {
        return new KvmergeException("the model " + path + " cannot be used: " + why + ": fetch or convert it again");
    }
}
