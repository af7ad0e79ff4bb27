package dev.kvmerge.server;

import io.helidon.webserver.http.ServerRequest;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.concurrent.Semaphore;

/**
 * The bytes of requests' bodies, as they come. Memory is counted once there is something in it: a client that announces
 * much and sends nothing keeps nobody out.
 */
final class Bodies {
    private static final int PIECE = 1 << 16; // bytes; a body of one piece is not counted, and always taken

    private final int most;
    private final long patienceNanos;
    private final Semaphore free; // pieces of all bodies that are on their way

    /**
     * @param most bytes of a body
     * @param all bytes of all bodies that are read at once, but for a piece of each
     * @param patience longest time that a body may take
     */
    Bodies(int most, long all, Duration patience) {
        this.most = most;
        this.patienceNanos = patience.toNanos();
        this.free = new Semaphore(Math.clamp(all / PIECE, most / PIECE + 1, Integer.MAX_VALUE));
    }

    /** @throws ApiException if it is too long, takes too long, is no body, or there is no memory for it now */
    byte[] read(ServerRequest request) {
        if (!request.content().hasEntity()) {
            return new byte[0];
        }
        long start = System.nanoTime();
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        byte[] piece = new byte[PIECE];
        int taken = 0;
        InputStream in = request.content().inputStream(); // closed, it would wait for the rest
        try {
            for (int n = in.read(piece); n >= 0; n = in.read(piece)) {
                body.write(piece, 0, n);
                if (body.size() > most) {
                    throw ApiException.tooLarge(most);
                }
                if (System.nanoTime() - start > patienceNanos) {
                    throw ApiException.slow("The request's body took longer than --timeout.");
                }
                for (; taken < (body.size() - 1) / PIECE; taken++) {
                    if (!free.tryAcquire()) {
                        throw ApiException.unavailable(
                                "too_many_requests", "Too much is asked at once: try again later.");
                    }
                }
            }
            return body.toByteArray();
        } catch (IllegalArgumentException e) { // of Helidon, where a chunk's length is none
            throw ApiException.garbled("The request's body is not in chunks as HTTP has them.");
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        } finally {
            free.release(taken);
        }
    }
}
