package dev.kvmerge;

/** A failure that a person can act on: its message names the thing and the remedy, in one line. */
public class KvmergeException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public KvmergeException(String message) {
        super(message);
    }

    public KvmergeException(String message, Throwable cause) {
        super(message, cause);
    }

    /** Asked for something that cannot be: the caller's mistake, exit code 2 on the command line. */
    public static final class Usage extends KvmergeException {
        private static final long serialVersionUID = 1L;

        public Usage(String message) {
            super(message);
        }
    }
}
