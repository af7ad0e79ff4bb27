package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import java.time.Duration;

/** Refuses what an option cannot be, by its name. */
final class Limits {
    private Limits() {}

    static void timeout(Duration timeout) {
        if (timeout != null && (timeout.isNegative() || timeout.isZero())) {
            throw new KvmergeException.Usage("timeout must be positive, not " + timeout + "; null is no limit");
        }
    }

    static void least(String name, long value, long least) {
        if (value < least) {
            throw new KvmergeException.Usage(name + " must be at least " + least + ", not " + value);
        }
    }

    static void most(String name, long value, long most) {
        if (value > most) {
            throw new KvmergeException.Usage(name + " must be at most " + most + ", not " + value);
        }
    }

    static void finite(String name, float value) {
        if (!Float.isFinite(value)) {
            throw new KvmergeException.Usage(name + " must be a finite number, not " + value);
        }
    }

    static void between(String name, float value, float least, float most) {
        if (!(value >= least && value <= most)) {
            throw new KvmergeException.Usage(name + " must be " + least + " to " + most + ", not " + value);
        }
    }
}
