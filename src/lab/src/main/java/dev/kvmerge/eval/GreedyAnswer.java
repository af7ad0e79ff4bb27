package dev.kvmerge.eval;

import dev.kvmerge.llama.Model;
import java.io.ByteArrayOutputStream;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.function.Predicate;

/** The likeliest answer to what a cache was asked. */
final class GreedyAnswer {
    private GreedyAnswer() {}

    /**
     * Generates it; what was asked is forgotten then.
     *
     * @param first logits after the question
     * @param most tokens
     * @param enough whether this beginning of the answer is all that has to be known
     */
    static String of(Model model, ChatCache cache, MemorySegment first, int most, Predicate<String> enough) {
        MemorySegment logits = first;
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        for (int i = 0; i < most; i++) {
            int token = likeliest(model, logits);
            if (model.endsGeneration(token)) {
                break;
            }
            bytes.writeBytes(model.piece(token));
            if (enough.test(bytes.toString(StandardCharsets.UTF_8))) {
                break;
            }
            if (i + 1 < most) {
                logits = cache.ask(new int[] {token});
            }
        }
        cache.forget();
        return bytes.toString(StandardCharsets.UTF_8).strip();
    }

    private static int likeliest(Model model, MemorySegment logits) {
        int best = 0;
        for (int i = 1; i < model.vocabularySize(); i++) {
            if (logits.getAtIndex(ValueLayout.JAVA_FLOAT, i) > logits.getAtIndex(ValueLayout.JAVA_FLOAT, best)) {
                best = i;
            }
        }
        return best;
    }
}
