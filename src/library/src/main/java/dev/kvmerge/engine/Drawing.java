package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Sampler;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ThreadLocalRandom;

/** A sampler that can be made again as it was: by its seed, what it drew of it, and the tokens that it chose. */
final class Drawing implements AutoCloseable {
    /**
     * How to make it again.
     *
     * @param chosen how many of the session's newest tokens it has chosen
     */
    record State(Sampling sampling, boolean ignoreEos, int seed, long drawn, int chosen) {}

    private final Sampler sampler;
    private final State begun;
    private int chosen;

    /** For what comes after these tokens. */
    static Drawing begin(Model model, Sampling sampling, boolean ignoreEos, int[] history) {
        int seed = sampling.seed() == Sampling.RANDOM_SEED
                ? ThreadLocalRandom.current().nextInt(Integer.MAX_VALUE)
                : (int) sampling.seed();
        return resume(model, new State(sampling, ignoreEos, seed, 0, 0), history);
    }

    /** What goes on in a saved session, or null. */
    static Drawing of(Model model, Saved saved) {
        return saved.drawing() == null ? null : resume(model, saved.drawing(), saved.tokens());
    }

    /** As it was after it had chosen the last of these tokens. */
    static Drawing resume(Model model, State state, int[] history) {
        Drawing drawing = new Drawing(model, state);
        try {
            int first = history.length - state.chosen;
            for (int i = Math.max(0, first - state.sampling.repeatLastN()); i < first; i++) {
                drawing.sampler.acceptPrompt(history[i]);
            }
            for (int i = first; i < history.length; i++) {
                drawing.sampler.accept(history[i]);
            }
            return drawing;
        } catch (RuntimeException | Error e) {
            drawing.close();
            throw e;
        }
    }

    private Drawing(Model model, State state) {
        begun = state;
        chosen = state.chosen;
        sampler = new Sampler(model);
        try {
            build(state);
        } catch (RuntimeException | Error e) {
            sampler.close();
            throw e;
        }
    }

    /** llama-cli's order (common/sampling.cpp). */
    private void build(State state) {
        Sampling s = state.sampling;
        if (state.ignoreEos) {
            sampler.withoutEnd();
        }
        if (!s.grammar().isEmpty()) {
            sampler.grammar(s.grammar());
        }
        sampler.bias(s.logitBias());
        sampler.penalties(s.repeatLastN(), s.repeatPenalty(), s.frequencyPenalty(), s.presencePenalty());
        if (s.temperature() == 0) {
            sampler.likeliest();
            return;
        }
        sampler.topK(s.topK())
                .typical(s.typicalP())
                .topP(s.topP())
                .minP(s.minP())
                .temperature(s.temperature())
                .draw(state.seed, state.drawn);
    }

    /** Whether it does what these ask for. */
    boolean isOf(Sampling sampling, boolean ignoreEos) {
        return begun.sampling.equals(sampling) && begun.ignoreEos == ignoreEos;
    }

    /** Chooses the token after the one that these logits are of. */
    int next(MemorySegment logits) {
        int token = sampler.sample(logits);
        sampler.accept(token);
        chosen++;
        return token;
    }

    State state() {
        return new State(begun.sampling, begun.ignoreEos, begun.seed, sampler.drawn(), chosen);
    }

    @Override
    public void close() {
        sampler.close();
    }
}
