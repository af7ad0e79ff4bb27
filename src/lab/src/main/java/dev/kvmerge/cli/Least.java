package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;

/** Options that are numbers of things. */
final class Least {
    private Least() {}

    /** Refuses a number that is less than it can be. */
    static void of(String option, long value, long least) {
        if (value < least) {
            throw new KvmergeException.Usage(option + " must be "
                    + (least == 0 ? "0 or more" : least == 1 ? "positive" : least + " or more") + ", not " + value);
        }
    }
}
