package dev.kvmerge.strategy;

/** A scale that knows what the rest of the text is going to attend to: a limit that strategies can be compared with. */
public sealed interface Foreknowing extends Scale permits Oracle, OracleMerged {
    /** What a full run attended to. */
    @FunctionalInterface
    interface Future {
        /**
         * Attention that a position will get from all queries after another.
         *
         * @param after the newest position so far
         */
        double mass(int layer, int kvHead, int position, int after);
    }

    /**
     * The strategy that a recorded run makes possible.
     *
     * @throws NullPointerException if there is none
     */
    Strategy knowing(Future future);

    @Override
    default boolean keepsAll() {
        return false;
    }
}
