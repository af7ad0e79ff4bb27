package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Scorer;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/**
 * The full cache's predictions on disk, 16 bits a token of the vocabulary, so that runs made later can be compared with
 * them. A row predicts one token. Written once, in order; then read.
 */
final class PackedLogits implements AutoCloseable {
    private final Path file;
    private final FileChannel channel;
    private final Scorer scorer;
    private final int rowBytes;
    private final Arena arena = Arena.ofShared();
    private MemorySegment buffer = MemorySegment.NULL;

    private PackedLogits(Path file, FileChannel channel, Scorer scorer) {
        this.file = file;
        this.channel = channel;
        this.scorer = scorer;
        this.rowBytes = scorer.packedRowBytes();
    }

    static PackedLogits create(Path file, Scorer scorer) {
        return open(
                file,
                scorer,
                StandardOpenOption.CREATE,
                StandardOpenOption.TRUNCATE_EXISTING,
                StandardOpenOption.WRITE);
    }

    static PackedLogits read(Path file, Scorer scorer) {
        return open(file, scorer, StandardOpenOption.READ);
    }

    private static PackedLogits open(Path file, Scorer scorer, StandardOpenOption... how) {
        try {
            return new PackedLogits(file, FileChannel.open(file, how), scorer);
        } catch (IOException e) {
            throw new KvmergeException("cannot open " + file + ": " + e, e);
        }
    }

    /** Adds rows of logits, F32 [rows][vocabulary]. */
    void append(MemorySegment logits, int rows) {
        MemorySegment packed = buffer(rows);
        scorer.pack(logits, rows, packed);
        ByteBuffer bytes = packed.asSlice(0, (long) rows * rowBytes).asByteBuffer();
        try {
            while (bytes.hasRemaining()) {
                channel.write(bytes);
            }
        } catch (IOException e) {
            throw new KvmergeException(
                    "cannot write the full cache's predictions to " + file + " (" + rowBytes + " bytes a token): "
                            + e.getMessage() + "; free space there, or choose another --out",
                    e);
        }
    }

    /** The rows from..from+rows-1, in the order that they were added in; valid until the next call. */
    MemorySegment rows(int from, int rows) {
        MemorySegment packed = buffer(rows).asSlice(0, (long) rows * rowBytes);
        ByteBuffer bytes = packed.asByteBuffer();
        try {
            long at = (long) from * rowBytes;
            while (bytes.hasRemaining()) {
                int n = channel.read(bytes, at + bytes.position());
                if (n < 0) {
                    throw new KvmergeException(
                            "the full cache's predictions in " + file + " end early: run without --resume");
                }
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + file + ": " + e.getMessage(), e);
        }
        return packed;
    }

    private MemorySegment buffer(int rows) {
        long needed = (long) rows * rowBytes;
        if (buffer.byteSize() < needed) {
            buffer = arena.allocate(needed, 8);
        }
        return buffer;
    }

    @Override
    public void close() {
        arena.close();
        try {
            channel.close();
        } catch (IOException e) {
            throw new KvmergeException("cannot close " + file + ": " + e.getMessage(), e);
        }
    }
}
