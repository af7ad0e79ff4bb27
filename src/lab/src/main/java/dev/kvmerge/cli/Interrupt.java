package dev.kvmerge.cli;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/** Ctrl-C and SIGTERM: ask the work to stop at its next block, and hold the JVM's end until it has. */
final class Interrupt {
    private static final long PATIENCE_NANOS = TimeUnit.SECONDS.toNanos(20);
    private static final long LOOK_MILLIS = 20;
    private static final AtomicBoolean REQUESTED = new AtomicBoolean();
    private static boolean installed;
    private static volatile Thread working;
    private static volatile String farewell;

    private Interrupt() {}

    /** Starts to listen: this thread's work can be stopped from now on. */
    static synchronized void listen(String message) {
        farewell = message;
        working = Thread.currentThread();
        if (!installed) {
            installed = true;
            Runtime.getRuntime().addShutdownHook(new Thread(Interrupt::stop));
        }
    }

    private static void stop() {
        if (!busy()) {
            return;
        }
        REQUESTED.set(true);
        System.err.println();
        System.err.println(farewell);
        long start = System.nanoTime();
        try {
            while (busy()) {
                if (System.nanoTime() - start > PATIENCE_NANOS) {
                    System.err.println("kvmerge: the block in work did not end; stopping anyway");
                    return;
                }
                Thread.sleep(LOOK_MILLIS);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    /** Whether there is work that can still stop by itself: its thread may be dead, or be the one that ends the JVM. */
    private static boolean busy() {
        Thread thread = working;
        if (thread == null || !thread.isAlive()) {
            return false;
        }
        for (StackTraceElement frame : thread.getStackTrace()) {
            if (frame.getClassName().equals("java.lang.Shutdown")) {
                return false;
            }
        }
        return true;
    }

    static boolean requested() {
        return REQUESTED.get();
    }

    /** The work is over, well or not: the JVM may end. */
    static void finished() {
        working = null;
    }
}
