package dev.kvmerge.cli;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/** Ctrl-C: asks the work to stop at its next block, and holds the JVM's end until it has. */
final class Interrupt {
    private static final int PATIENCE_SECONDS = 20;
    private static final AtomicBoolean REQUESTED = new AtomicBoolean();
    private static final CountDownLatch FINISHED = new CountDownLatch(1);
    private static boolean installed;

    private Interrupt() {}

    /** Starts to listen. */
    static synchronized void listen(String message) {
        if (installed) {
            return;
        }
        installed = true;
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            if (FINISHED.getCount() == 0) {
                return;
            }
            REQUESTED.set(true);
            System.err.println();
            System.err.println(message);
            try {
                if (!FINISHED.await(PATIENCE_SECONDS, TimeUnit.SECONDS)) {
                    System.err.println("kvmerge: the block in work did not end; stopping anyway");
                }
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }));
    }

    static boolean requested() {
        return REQUESTED.get();
    }

    /** The work is over: the JVM may end. */
    static void finished() {
        FINISHED.countDown();
    }
}
