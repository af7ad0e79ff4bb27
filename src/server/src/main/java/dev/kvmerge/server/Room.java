package dev.kvmerge.server;

import java.time.Duration;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** Bounds what is done at once, in units of its size: what needs much memory waits for what has it. */
final class Room {
    private final int units;
    private final Semaphore free;
    private final Duration patience;

    Room(int units, Duration patience) {
        this.units = units;
        this.free = new Semaphore(units);
        this.patience = patience;
    }

    /**
     * Does something within the room.
     *
     * @param size in units; what is larger than the room takes all of it
     * @throws ApiException 503 if there was not so much room in time
     */
    <T> T with(int size, Supplier<T> action) {
        int taken = Math.clamp(size, 1, units);
        try {
            if (!free.tryAcquire(taken, patience.toNanos(), TimeUnit.NANOSECONDS)) {
                throw ApiException.unavailable("too_many_requests", "Too much is asked at once: try again later.");
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new Slots.GoneException();
        }
        try {
            return action.get();
        } finally {
            free.release(taken);
        }
    }
}
