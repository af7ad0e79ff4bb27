package dev.kvmerge;

/** What was thrown in one place and is thrown again in another. */
public final class Failures {
    private Failures() {}

    /** Throws it, a checked one as the cause of an {@link IllegalStateException}; does nothing with null. */
    public static void rethrow(Throwable failure) {
        switch (failure) {
            case null -> {}
            case RuntimeException e -> throw e;
            case Error e -> throw e;
            default -> throw new IllegalStateException(failure);
        }
    }
}
