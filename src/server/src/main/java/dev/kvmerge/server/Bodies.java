package dev.kvmerge.server;

import io.helidon.webserver.http.ServerRequest;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.concurrent.Semaphore;
import java.util.function.Function;

/**
 * The bytes of requests' bodies, from the first until they are made use of. Memory is counted once there is something
 * in it: a client that announces much and sends nothing keeps nobody out.
 */
final class Bodies {
    private static final int PIECE = 1 << 12; // bytes; the first of a body is not counted: a small body always is taken

    private final int most;
    private final long patienceNanos;
    private final Semaphore free; // pieces of all bodies that are held

    /**
     * @param most bytes of a body
     * @param all bytes of all bodies that are held at once, but for a piece of each
     * @param patience longest time that a body may take
     */
    Bodies(int most, long all, Duration patience) {
        this.most = most;
        this.patienceNanos = patience.toNanos();
        this.free = new Semaphore(Math.clamp(all / PIECE, most / PIECE + 1, Integer.MAX_VALUE));
    }

    /**
     * Hands a request's body to its reader, and counts it until that is done: a whole body may wait there.
     *
     * @throws ApiException if it is too long, takes too long, is no body, or there is no memory for it now
     */
    <T> T with(ServerRequest request, Function<byte[], T> reader) {
        Held held = new Held();
        try {
            return reader.apply(request.content().hasEntity() ? read(request, held) : new byte[0]);
        } finally {
            free.release(held.pieces);
        }
    }

    /** What a body has taken of the memory for all. */
    private final class Held {
        private int pieces;

        /** Takes what a body of so many bytes needs. */
        void grow(int bytes) {
            for (; pieces < (bytes - 1) / PIECE; pieces++) {
                if (!free.tryAcquire()) {
                    throw ApiException.unavailable("too_many_requests", "Too much is asked at once: try again later.");
                }
            }
        }
    }

    private byte[] read(ServerRequest request, Held held) {
        long start = System.nanoTime();
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        byte[] piece = new byte[PIECE];
        InputStream in = request.content().inputStream(); // closed, it would wait for the rest
        try {
            for (int n = in.read(piece); n >= 0; n = in.read(piece)) {
                held.grow(body.size() + n);
                body.write(piece, 0, n);
                if (body.size() > most) {
                    throw ApiException.tooLarge(most);
                }
                if (System.nanoTime() - start > patienceNanos) {
                    throw ApiException.slow("The request's body took longer than --timeout.");
                }
            }
            return body.toByteArray();
        } catch (IllegalArgumentException e) { // of Helidon, where a chunk's length is none
            throw ApiException.garbled("The request's body is not in chunks as HTTP has them.");
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
