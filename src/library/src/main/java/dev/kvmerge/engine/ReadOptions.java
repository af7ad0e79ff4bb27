package dev.kvmerge.engine;

import java.time.Duration;

/**
 * How to read.
 *
 * @param special whether special tokens that are written in a text are parsed as such; else they are text
 * @param progress told, after each block, how many of the tokens have been read; null for nobody
 * @param timeout most time to take, null for no limit
 */
public record ReadOptions(boolean special, Progress progress, Duration timeout) {
    /** Told how far reading is, on the thread that called. What it throws ends the reading. */
    @FunctionalInterface
    public interface Progress {
        /**
         * Some tokens were read.
         *
         * @param done tokens read so far
         * @param all tokens to read
         */
        void read(int done, int all);
    }

    public ReadOptions {
        Limits.timeout(timeout);
    }

    /** Special tokens as text, nobody told, no limit. */
    public static ReadOptions usual() {
        return new ReadOptions(false, null, null);
    }

    /** The same with special tokens parsed, or not. */
    public ReadOptions withSpecial(boolean parsed) {
        return new ReadOptions(parsed, progress, timeout);
    }

    /** The same with progress told. */
    public ReadOptions withProgress(Progress told) {
        return new ReadOptions(special, told, timeout);
    }

    /** The same with a limit. */
    public ReadOptions withTimeout(Duration most) {
        return new ReadOptions(special, progress, most);
    }
}
