package dev.kvmerge.engine;

import dev.kvmerge.engine.Generation.Ended;
import dev.kvmerge.llama.Model;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.Supplier;

/** One run: reads what is new, then chooses, delivers and decodes token after token. */
final class Generating {
    private final Model model;
    private final Scheduler scheduler;
    private final Sequence sequence;
    private final History history;
    private final Utf8 utf8;
    private final int promptBlock;
    private final Call call;
    private final GenerateOptions options;
    private final Consumer<String> onText;
    private final StopStrings stops;
    private final StringBuilder text = new StringBuilder();
    private final List<TokenLogprob> logprobs = new ArrayList<>();
    private int[] made = new int[16];
    private int count;

    Generating(
            Engine engine,
            Sequence sequence,
            History history,
            Utf8 utf8,
            Call call,
            GenerateOptions options,
            Consumer<String> onText) {
        this.model = engine.model();
        this.scheduler = engine.scheduler();
        this.sequence = sequence;
        this.promptBlock = engine.cache().promptBlock();
        this.history = history;
        this.utf8 = utf8;
        this.call = call;
        this.options = options;
        this.onText = onText;
        this.stops = new StopStrings(options.stop());
    }

    /**
     * Runs.
     *
     * @param first the first token that is new; what comes before it and was not decoded is no part of the prompt
     * @param promptTokens tokens of the prompt, for the record
     * @param drawing gives the sampler, once the prompt has been read
     */
    Generation run(int first, int promptTokens, Supplier<Drawing> drawing) {
        int all = history.size() - first;
        Ended ended = null;
        int read;
        try {
            ended = read(first, all);
        } finally {
            read = Math.max(0, history.decoded() - first);
            history.cut(Math.max(history.decoded(), Math.min(first, history.size()))); // of the prompt, what was read
        }
        long prompt = call.nanos();
        if (ended == null) {
            ended = generate(drawing);
        }
        return new Generation(
                text.toString(),
                Arrays.copyOf(made, count),
                ended,
                stops.met(),
                promptTokens,
                read,
                logprobs,
                Duration.ofNanos(prompt),
                Duration.ofNanos(call.nanos() - prompt));
    }

    /** Why reading ended before all was read, or null. */
    private Ended read(int first, int all) {
        while (history.decoded() < history.size()) {
            Ended ended = call.ending();
            if (ended == null && !decode(history.next(promptBlock))) {
                ended = call.ending();
            }
            if (ended != null) {
                return ended;
            }
            if (options.progress() != null && all > 0) {
                options.progress().read(Math.max(0, history.decoded() - first), all);
            }
        }
        return null;
    }

    private boolean decode(int[] tokens) {
        return scheduler.decode(sequence, tokens, call, history::decoded);
    }

    private Ended generate(Supplier<Drawing> sampler) {
        if (options.maxTokens() == 0) {
            return Ended.LENGTH;
        }
        Drawing drawing = sampler.get();
        while (true) {
            Ended ended = call.ending();
            if (ended == null && history.decoded() < history.size() && !decode(history.next(1))) {
                ended = call.ending();
            }
            if (ended == null) {
                ended = next(drawing);
            }
            if (ended != null) {
                deliver(ended == Ended.STOP ? "" : stops.end());
                return ended;
            }
        }
    }

    /** Chooses a token and delivers its text; why the generation ended with it, or null. */
    private Ended next(Drawing drawing) {
        int token = drawing.next(sequence.logits());
        history.generate(token);
        if (count == made.length) {
            made = Arrays.copyOf(made, 2 * count);
        }
        made[count++] = token;
        if (options.logprobs() >= 0) {
            TokenLogprob logprob = Logprobs.of(model, sequence.logits(), token, options.logprobs());
            logprobs.add(logprob);
            if (options.onLogprob() != null) {
                options.onLogprob().accept(logprob);
            }
        }
        if (!options.ignoreEos() && model.endsGeneration(token)) {
            return Ended.END_OF_GENERATION;
        }
        deliver(stops.add(utf8.add(model.piece(token))));
        if (stops.met() != null) {
            return Ended.STOP;
        }
        return count == options.maxTokens() ? Ended.LENGTH : null;
    }

    private void deliver(String more) {
        if (!more.isEmpty()) {
            text.append(more);
            onText.accept(more);
        }
    }
}
