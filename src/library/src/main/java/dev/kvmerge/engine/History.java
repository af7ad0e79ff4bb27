package dev.kvmerge.engine;

import java.util.Arrays;

/**
 * The tokens of a session. Those at the end that were not decoded yet are at most the one that was generated last, and
 * while a prompt is read what is left of it. Any thread may look.
 */
final class History {
    private int[] tokens = new int[256];
    private int size;
    private int decoded;

    synchronized int size() {
        return size;
    }

    synchronized int decoded() {
        return decoded;
    }

    synchronized int[] tokens() {
        return Arrays.copyOf(tokens, size);
    }

    synchronized void append(int... more) {
        if (more.length > tokens.length - size) {
            tokens = Arrays.copyOf(tokens, Math.max(Math.addExact(size, more.length), size + size / 2));
        }
        System.arraycopy(more, 0, tokens, size, more.length);
        size += more.length;
    }

    /** The next tokens to decode, at most so many. */
    synchronized int[] next(int most) {
        return Arrays.copyOfRange(tokens, decoded, Math.min(size, decoded + most));
    }

    synchronized void decoded(int n) {
        decoded += n;
    }

    /** Forgets the tokens from the n-th on; they were not decoded. */
    synchronized void cut(int n) {
        if (n < decoded) {
            throw new IllegalStateException("token " + n + " was decoded already");
        }
        size = n;
    }

    /** The first n tokens are there, decoded, and no others. */
    synchronized void begin(int[] first, int n) {
        tokens = Arrays.copyOf(first, Math.max(256, n));
        size = n;
        decoded = n;
    }

    /** How many leading tokens are these. */
    synchronized int agreeing(int[] with) {
        int differs = Arrays.mismatch(with, 0, with.length, tokens, 0, size);
        return differs < 0 ? size : differs;
    }
}
