package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;

/** What strategies refuse as parameters, each naming the parameter and what it may be. */
final class Check {
    private Check() {}

    /** First tokens that always stay. */
    static void sinks(int sinks) {
        if (sinks < 0) {
            throw new KvmergeException.Usage("--sinks must not be negative: " + sinks);
        }
    }

    /** A share of the budget for the newest tokens. */
    static void recentShare(double share) {
        if (!(share >= 0 && share <= 1)) {
            throw new KvmergeException.Usage("--recent-share must be 0..1: " + share);
        }
    }

    /** A factor on the mass at each block. */
    static void decay(double decay) {
        if (!(decay >= 0 && decay <= 1)) {
            throw new KvmergeException.Usage("the decay must be 0..1: " + decay);
        }
    }

    /** A finite number that is not negative. */
    static void notNegative(String name, double value) {
        if (!(value >= 0 && value < Double.POSITIVE_INFINITY)) {
            throw new KvmergeException.Usage("the " + name + " must be finite and not negative: " + value);
        }
    }

    /** A number of things. */
    static void positive(String name, int value) {
        if (value < 1) {
            throw new KvmergeException.Usage("the " + name + " must be positive: " + value);
        }
    }

    /** The sum, or the largest number where it is larger. */
    static int sum(int a, int b) {
        return (int) Math.min(Integer.MAX_VALUE, (long) a + b);
    }
}
