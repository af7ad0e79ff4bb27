package dev.kvmerge.eval;

import java.lang.management.ManagementFactory;

/** What a bench times by. */
public enum Clock {
    /** The clock on the wall. */
    WALL {
        @Override
        long nanoseconds() {
            return System.nanoTime();
        }
    },
    /** The CPU time of the calling thread: all there is where one thread computes. Other programs disturb it less. */
    CPU {
        @Override
        long nanoseconds() {
            return ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime();
        }
    };

    abstract long nanoseconds();
}
