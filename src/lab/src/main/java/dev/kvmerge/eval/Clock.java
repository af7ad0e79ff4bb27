package dev.kvmerge.eval;

import com.sun.management.OperatingSystemMXBean;
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
    /** The CPU time of this process, all its threads: other programs disturb it less, threads that wait add to it. */
    CPU {
        @Override
        long nanoseconds() {
            return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
        }
    };

    abstract long nanoseconds();
}
