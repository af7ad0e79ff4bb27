package dev.kvmerge.engine;

import java.util.BitSet;
import java.util.List;

/**
 * All of a session but its context.
 *
 * @param tokens all of them
 * @param decoded how many of them were decoded
 * @param generated which of them the model has made; the others were read
 * @param rest the beginning of a character
 * @param logits of the newest token; none where nothing was decoded
 * @param drawing null where nothing would go on
 */
record Saved(
        int[] tokens,
        int decoded,
        BitSet generated,
        byte[] rest,
        float[] logits,
        Pinned pinned,
        List<ChatMessage> messages,
        Drawing.State drawing) {
    /**
     * The prefix that is never dropped or merged.
     *
     * @param tokens how many
     * @param state of the context when it had read no more; null where nothing is pinned
     */
    record Pinned(int tokens, byte[] state) {
        static final Pinned NOTHING = new Pinned(0, null);
    }
}
