package dev.kvmerge.engine;

import java.util.Arrays;
import java.util.BitSet;

/**
 * The tokens of a session. Those at the end that were not decoded yet are at most the one that was generated last, and
 * while a prompt is read what is left of it. Any thread may look.
 */
final class History {
    private int[] tokens = new int[256];
    private int size;
    private int decoded;
    private BitSet generated = new BitSet();

    synchronized int size() {
        return size;
    }

    synchronized int decoded() {
        return decoded;
    }

    synchronized int[] tokens() {
        return Arrays.copyOf(tokens, size);
    }

    /** Which tokens were generated; the others were read. */
    synchronized BitSet generated() {
        return (BitSet) generated.clone();
    }

    /** Appends a token that the model has made. */
    synchronized void generate(int token) {
        append(token);
        generated.set(size - 1);
    }

    /** Appends tokens that are read. */
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
        keep(n);
    }

    private void keep(int n) {
        size = n;
        generated.clear(n, Math.max(n, generated.length()));
    }

    /** Goes back to the first n tokens, which are decoded. */
    synchronized void backTo(int n) {
        keep(n);
        decoded = n;
    }

    /** Has these tokens and no others, the first n of them decoded. */
    synchronized void begin(int[] all, int n, BitSet made) {
        tokens = Arrays.copyOf(all, Math.max(256, all.length));
        size = all.length;
        decoded = n;
        generated = (BitSet) made.clone();
    }

    /** How many leading tokens are these. */
    synchronized int agreeing(int[] with) {
        int differs = Arrays.mismatch(with, 0, with.length, tokens, 0, size);
        return differs < 0 ? size : differs;
    }
}
