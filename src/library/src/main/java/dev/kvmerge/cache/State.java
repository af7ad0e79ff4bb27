package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.CellTable;
import dev.kvmerge.llama.FreeMemory;
import java.io.EOFException;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;

/** A compressed context's state in native memory, to and from channels. */
final class State {
    private static final long PIECE = 1 << 26; // a buffer has 2 GiB at most

    private State() {}

    static void write(MemorySegment state, WritableByteChannel to) throws IOException {
        for (long at = 0; at < state.byteSize(); at += PIECE) {
            ByteBuffer piece = piece(state, at);
            while (piece.hasRemaining()) {
                to.write(piece);
            }
        }
    }

    /**
     * Reads one state, and no more.
     *
     * @throws EOFException if the channel ends before it does
     * @throws KvmergeException if it is none, or larger than the memory that is free
     */
    static MemorySegment read(ReadableByteChannel from, Arena arena) throws IOException {
        MemorySegment start = arena.allocate(CellTable.STATE_START, Long.BYTES);
        fill(start.asByteBuffer(), from);
        long bytes = CellTable.stateBytes(start);
        if (bytes > FreeMemory.bytes()) {
            throw new KvmergeException("a state of " + bytes
                    + " bytes, more than there is memory for: it is damaged, or" + " was saved on a larger machine");
        }
        MemorySegment state = arena.allocate(bytes, Long.BYTES).copyFrom(start);
        for (long at = start.byteSize(); at < bytes; at += PIECE) {
            fill(piece(state, at), from);
        }
        return state;
    }

    private static ByteBuffer piece(MemorySegment state, long at) {
        return state.asSlice(at, Math.min(PIECE, state.byteSize() - at)).asByteBuffer();
    }

    private static void fill(ByteBuffer piece, ReadableByteChannel from) throws IOException {
        while (piece.hasRemaining()) {
            if (from.read(piece) < 0) {
                throw new EOFException("the state of a compressed context is cut short");
            }
        }
    }
}
