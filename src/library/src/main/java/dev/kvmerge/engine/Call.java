package dev.kvmerge.engine;

import dev.kvmerge.engine.Generation.Ended;
import java.time.Duration;

/** A call of a session that may be ended early: by a cancel, an interrupt of its thread, or its time. */
final class Call implements Scheduler.Ending {
    private final long start = System.nanoTime();
    private final long most; // nanoseconds
    private volatile boolean cancelled;
    private boolean interrupted;

    Call(Duration timeout) {
        most = timeout == null ? Long.MAX_VALUE : nanos(timeout);
    }

    private static long nanos(Duration timeout) {
        try {
            return timeout.toNanos();
        } catch (ArithmeticException e) {
            return Long.MAX_VALUE;
        }
    }

    void cancel() {
        cancelled = true;
    }

    /** Why to end, or null. */
    Ended ending() {
        if (Thread.interrupted()) {
            interrupted = true;
        }
        if (cancelled || interrupted) {
            return Ended.CANCELLED;
        }
        return nanos() >= most ? Ended.TIMEOUT : null;
    }

    /** Since the call began. */
    long nanos() {
        return System.nanoTime() - start;
    }

    @Override
    public long nanosLeft() {
        return ending() != null ? 0 : most - nanos();
    }

    @Override
    public void interrupted() {
        interrupted = true;
    }

    /** The thread's interrupt stays set for whoever called. */
    void leave() {
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
