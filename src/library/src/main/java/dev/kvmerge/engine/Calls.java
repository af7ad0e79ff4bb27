package dev.kvmerge.engine;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;

/** A session's calls: one at a time, on any thread, until it is closed. */
final class Calls {
    private final ReentrantLock using = new ReentrantLock();
    private volatile Call running;
    private volatile boolean closed;

    /** What a call does. */
    @FunctionalInterface
    interface Body<T> {
        T run(Call running);
    }

    /**
     * Runs a call.
     *
     * @throws IllegalStateException if another runs, or the session is closed
     */
    <T> T run(Call call, Body<T> body) {
        if (isMine()) {
            throw new IllegalStateException("the session is in a call: what it calls back must not call it");
        }
        if (!using.tryLock()) {
            throw new IllegalStateException("the session is in a call of another thread");
        }
        try {
            checkOpen();
            running = call;
            return body.run(call);
        } finally {
            running = null;
            using.unlock();
            call.leave();
        }
    }

    /** Whether this thread is in one. */
    boolean isMine() {
        return using.isHeldByCurrentThread();
    }

    void checkOpen() {
        if (closed) {
            throw new IllegalStateException("the session is closed");
        }
    }

    /** Tells the call that runs to end; whether one does. */
    boolean cancel() {
        Call call = running;
        if (call != null) {
            call.cancel();
        }
        return call != null;
    }

    /**
     * Ends what runs, waits for it, and closes.
     *
     * @param cancel the session's: ends the call that runs
     * @param end run once, when none does
     */
    void close(Runnable cancel, Runnable end) {
        if (isMine()) {
            throw new IllegalStateException("the session is in a call: what it calls back must not close it");
        }
        boolean interrupted = false;
        for (boolean entered = false; !entered; ) {
            cancel.run(); // again, if a call has begun meanwhile
            try {
                entered = using.tryLock(10, TimeUnit.MILLISECONDS);
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        try {
            if (!closed) {
                closed = true;
                end.run();
            }
        } finally {
            using.unlock();
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
