package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.PriorityQueue;

/** Log probabilities of a token and of the likeliest ones, from the model's own logits. */
final class Logprobs {
    private Logprobs() {}

    /**
     * Of one place.
     *
     * @param logits F32 [vocabulary]
     * @param n how many of the likeliest
     */
    static TokenLogprob of(Model model, MemorySegment logits, int token, int n) {
        int vocabulary = model.vocabularySize();
        float most = Float.NEGATIVE_INFINITY;
        for (int i = 0; i < vocabulary; i++) {
            most = Math.max(most, at(logits, i));
        }
        double sum = 0;
        for (int i = 0; i < vocabulary; i++) {
            sum += Math.exp(at(logits, i) - most);
        }
        double all = most + Math.log(sum);
        // The least likely first, and of those alike the later one: it goes when a likelier one comes.
        Comparator<Integer> worst =
                Comparator.<Integer>comparingDouble(i -> at(logits, i)).thenComparing(Comparator.reverseOrder());
        PriorityQueue<Integer> best = new PriorityQueue<>(n + 1, worst);
        for (int i = 0; i < vocabulary && n > 0; i++) {
            if (best.size() < n || worst.compare(i, best.peek()) > 0) {
                best.add(i);
                if (best.size() > n) {
                    best.poll();
                }
            }
        }
        List<TokenLogprob> top = new ArrayList<>();
        best.stream()
                .sorted(worst.reversed())
                .forEach(i -> top.add(new TokenLogprob(i, model.piece(i, true), at(logits, i) - all, List.of())));
        return new TokenLogprob(token, model.piece(token, true), at(logits, token) - all, top);
    }

    private static float at(MemorySegment logits, int i) {
        return logits.getAtIndex(ValueLayout.JAVA_FLOAT, i);
    }
}
