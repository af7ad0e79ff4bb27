package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Scorer;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Strategy;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/**
 * Can the model still find one fact in a long text after the cache was compressed? The question is decoded only after
 * the last compression: the strategy does not know what will be asked. A fact is hidden at several depths, with several
 * keys.
 */
public final class Retrieval {
    /**
     * What to ask.
     *
     * @param introduction before the text
     * @param filler what the text is made of: repeated junk, or a book
     * @param fact with {@code %s} for the key
     * @param question whose answer is the key
     */
    public record Puzzle(String introduction, String filler, String fact, String question) {
        /** llama.cpp's own passkey example. */
        public static Puzzle passkey() {
            return new Puzzle(
                    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I "
                            + "will quiz you about the important information there.",
                    " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
                    " The pass key is %s. Remember it. %s is the pass key.",
                    " What is the pass key? The pass key is");
        }

        /** A fact that does not belong, in a book. */
        public static Puzzle needle(String book) {
            return new Puzzle(
                    "",
                    book,
                    " The secret number of the old lighthouse is %s.",
                    "\n\nQuestion: What is the secret number of the old lighthouse? Answer: The secret number of the "
                            + "old lighthouse is");
        }
    }

    /**
     * How to ask.
     *
     * @param tokens length of the text, about
     * @param depths where the fact lies, 0 (start) to 1 (end)
     * @param trials keys a depth
     * @param block tokens between two compressions
     * @param compute how llama.cpp computes
     */
    public record Setup(int tokens, double[] depths, int trials, long seed, int block, ComputeSettings compute) {}

    /**
     * What came of it.
     *
     * @param found [depth]: share of trials in which the greedy answer is the key
     * @param nll [depth]: mean negative log-likelihood of the key, nats a token
     */
    public record Row(String cache, double compression, int cells, double[] found, double[] nll) {
        /** Over all depths. */
        public double meanFound() {
            return Arrays.stream(found).average().orElseThrow();
        }

        /** Over all depths. */
        public double meanNll() {
            return Arrays.stream(nll).average().orElseThrow();
        }
    }

    private final Model model;
    private final Puzzle puzzle;
    private final Setup setup;
    private final Scorer scorer;

    public Retrieval(Model model, Puzzle puzzle, Setup setup) {
        this.model = model;
        this.puzzle = puzzle;
        this.setup = setup;
        this.scorer = new Scorer(model.vocabularySize(), setup.compute().threads());
    }

    /**
     * Asks one cache at all depths.
     *
     * @param progress is told which depth and trial
     * @throws Experiment.Cancelled if asked to stop
     */
    public Row ask(Cache cache, Consumer<String> progress, BooleanSupplier cancelled) {
        int cells = cache.cells(setup.tokens());
        double[] found = new double[setup.depths().length];
        double[] nll = new double[found.length];
        Random keys = new Random(setup.seed()); // the same for every cache
        for (int d = 0; d < found.length; d++) {
            for (int trial = 0; trial < setup.trials(); trial++) {
                if (cancelled.getAsBoolean()) {
                    throw new Experiment.Cancelled();
                }
                progress.accept(String.format("depth %.2f, trial %d", setup.depths()[d], trial + 1));
                Answer answer = ask(cache.strategy(), cells, setup.depths()[d], 10000 + keys.nextInt(90000));
                found[d] += answer.found ? 1.0 / setup.trials() : 0;
                nll[d] += answer.nll / setup.trials();
            }
        }
        return new Row(cache.name(), cache.compression(), cells, found, nll);
    }

    private record Answer(boolean found, double nll) {}

    private Answer ask(Strategy strategy, int cells, double depth, int key) {
        Parts parts = cut(model, text(depth, key), puzzle.question(), " " + key);
        int[] text = parts.text;
        int[] question = parts.question;
        int[] answer = parts.answer;
        int block = setup.block();
        int whole = text.length + question.length + answer.length + block;
        CacheOptions options = (strategy.keepsAll()
                        ? CacheOptions.unlimited(whole, block)
                        : CacheOptions.of(cells, block))
                .with(setup.compute());
        try (CompressedContext context = new CompressedContext(model, strategy, options)) {
            for (int at = 0; at < text.length; at += block) {
                context.decode(Arrays.copyOfRange(text, at, Math.min(text.length, at + block)), false);
            }
            context.flush(); // compressed, before the question is known
            context.decode(question, false);
            // The key's tokens one by one: greedy while right, and their likelihood.
            boolean right = true;
            double nll = 0;
            for (int token : answer) {
                MemorySegment logits = context.logits();
                nll += scorer.negativeLogLikelihood(logits, new int[] {token})[0] / answer.length;
                right &= likeliest(logits) == token;
                context.decode(new int[] {token}, false);
            }
            return new Answer(right, nll);
        }
    }

    private int likeliest(MemorySegment logits) {
        int best = 0;
        for (int i = 1; i < model.vocabularySize(); i++) {
            if (logits.getAtIndex(ValueLayout.JAVA_FLOAT, i) > logits.getAtIndex(ValueLayout.JAVA_FLOAT, best)) {
                best = i;
            }
        }
        return best;
    }

    /** Tokens of the three parts of one text. */
    record Parts(int[] text, int[] question, int[] answer) {}

    /**
     * Tokenizes text, question and answer as the one text that they are, and cuts it: each alone might begin with a
     * space or end with an EOS that the whole has not. A token that reaches over a border belongs to what comes after
     * it.
     */
    static Parts cut(Model model, String text, String question, String answer) {
        int[] whole = Text.tokens(model, text + question + answer);
        int first = shared(whole, Text.tokens(model, text));
        int second = Math.max(first, shared(whole, Text.tokens(model, text + question)));
        if (first == 0 || first == second || second == whole.length) {
            throw new KvmergeException(
                    "the model's tokenizer has no tokens for a part of the text, the question or the answer '" + answer
                            + "': it cannot be asked; use another model");
        }
        return new Parts(
                Arrays.copyOf(whole, first),
                Arrays.copyOfRange(whole, first, second),
                Arrays.copyOfRange(whole, second, whole.length));
    }

    private static int shared(int[] a, int[] b) {
        int difference = Arrays.mismatch(a, b);
        return difference < 0 ? a.length : difference;
    }

    /** The text with the fact at a depth, between two sentences. */
    private String text(double depth, int key) {
        String fact = puzzle.fact().replace("%s", Integer.toString(key));
        List<String> parts = new ArrayList<>();
        int length = Text.tokens(model, puzzle.introduction() + fact).length;
        int fillerLength = 0;
        int bos = Text.tokens(model, "").length;
        List<String> sentences = Text.sentences(puzzle.filler());
        for (int i = 0; length + fillerLength < setup.tokens(); i++) {
            String sentence = sentences.get(i % sentences.size());
            fillerLength += Math.max(1, Text.tokens(model, sentence).length - bos);
            if (length + fillerLength <= setup.tokens()) {
                parts.add(sentence);
            }
        }
        parts.add((int) Math.round(depth * parts.size()), fact);
        return puzzle.introduction() + String.join("", parts);
    }
}
