package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Strategy;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.function.BooleanSupplier;
import java.util.function.Predicate;

/**
 * What is left of a conversation in a cache: forty facts that were told in it are asked for at its end, each question
 * on its own from the same cache, and at several points whether the system prompt's rule is still obeyed. The prompt is
 * pinned. The conversation is read once a cache; no strategy knows what will be asked.
 */
public final class Facts {
    /**
     * How to ask.
     *
     * @param facts that are told
     * @param tokens of the conversation, about
     * @param answer most tokens of an answer
     * @param block tokens between two compressions; question and answer have to fit into one
     */
    public record Setup(int facts, int tokens, int answer, int block, long seed, ComputeSettings compute) {}

    /**
     * A cache to ask.
     *
     * @param name of its strategy, or {@link ContextShift#NAME}
     * @param strategy null for llama.cpp's context shift
     * @param cells that stay; 0 for all
     */
    public record Asked(String name, Strategy strategy, int cells) {
        /** The strategy's parameters as text. */
        public String parameters() {
            return strategy == null ? "{}" : NotedParameters.of(strategy).toString();
        }
    }

    /**
     * What one cache remembered.
     *
     * @param parameters the strategy's, as text: a calibration that is found later makes another run
     * @param allocated cells of llama.cpp's context
     * @param used cells in use when the facts were asked for
     * @param tokens of the conversation
     * @param seconds that reading it took, checks of the rule included
     */
    public record Run(
            String cache,
            String parameters,
            int cells,
            int allocated,
            int used,
            int tokens,
            double seconds,
            List<Answer> answers,
            List<Check> checks) {}

    /**
     * An answer about a fact.
     *
     * @param right whether it contains the value
     * @param rank of the value's likelihood among the forty of its kind, after the beginning of a right answer: 1 is
     *     the likeliest
     * @param nats negative log-likelihood of the value among the forty; log 40 is a blind guess
     */
    public record Answer(
            String kind, String question, String value, String said, boolean right, int rank, double nats) {}

    /**
     * An answer that is to obey the rule.
     *
     * @param tokens of the conversation read so far
     * @param said the greedy answer's first words
     * @param obeyed whether it begins with the word
     * @param rank of the word among forty, likewise
     * @param nats as of a fact
     */
    public record Check(int tokens, String question, String said, boolean obeyed, int rank, double nats) {}

    /** Is told how far it is. */
    @FunctionalInterface
    public interface Listener {
        /** @param done 0..1 */
        void at(double done, String what);
    }

    private final Model model;
    private final ChatTokens written;
    private final Setup setup;
    private final FactsChat chat;
    private final Map<String, float[]> prior = new HashMap<>(); // logits of a question's values without a conversation
    private final List<int[]> stretches = new ArrayList<>(); // up to each point
    private final int kept; // tokens of the system prompt
    private final int length;

    /**
     * Makes the conversation.
     *
     * @throws KvmergeException if the model's tokenizer or template cannot take it, or it has too few positions
     */
    public Facts(Model model, ChatTemplate template, Setup setup) {
        this.model = model;
        this.written = new ChatTokens(model, template);
        this.setup = setup;
        this.chat = FactsChat.make(
                setup.seed(), setup.facts(), setup.tokens(), around(), text -> model.tokenize(text, false, false));
        int[] before = {};
        for (int point : chat.points()) {
            int[] all = tokens(chat.messages().subList(0, point), false);
            stretches.add(after(before, all));
            before = all;
        }
        this.length = stretches.stream().mapToInt(s -> s.length).sum();
        this.kept = shared(chat.messages().getFirst());
        if (kept > setup.block()) {
            throw new KvmergeException.Usage("the system prompt has " + kept + " tokens, more than a block of "
                    + setup.block() + ": give a larger --block");
        }
        if (length + setup.block() > model.trainedContext()) {
            throw new KvmergeException.Usage("the model was trained on " + model.trainedContext()
                    + " positions, and the conversation has " + length + " and a question: give fewer --tokens");
        }
    }

    /** Tokens of the conversation. */
    public int length() {
        return length;
    }

    public FactsChat chat() {
        return chat;
    }

    /** How many tokens all conversations with this system prompt begin with. */
    private int shared(ChatMessage system) {
        return Arrays.mismatch(
                tokens(List.of(system, ChatMessage.user("One")), false),
                tokens(List.of(system, ChatMessage.user("Two")), false));
    }

    /** Tokens that the template writes around a message, beside those of its content. */
    private int around() {
        String word = "Well";
        List<ChatMessage> two = List.of(ChatMessage.user(word), ChatMessage.assistant(word));
        List<ChatMessage> four = List.of(two.getFirst(), two.getLast(), two.getFirst(), two.getLast());
        int more = tokens(four, false).length - tokens(two, false).length;
        return Math.ceilDiv(more, 2) - model.tokenize(word, false, false).length;
    }

    private int[] tokens(List<ChatMessage> messages, boolean answer) {
        return written.of(messages, answer);
    }

    /** The tokens that a conversation goes on with. */
    private int[] after(int[] before, int[] all) {
        if (before.length > 0 && Arrays.mismatch(before, all) != before.length) {
            throw new KvmergeException("the chat template of the model " + model.path()
                    + " writes anew what was said before, so that a conversation cannot go on in its cache: use another"
                    + " model");
        }
        return Arrays.copyOfRange(all, before.length, all.length);
    }

    /**
     * Reads the conversation into one cache and asks.
     *
     * @throws Experiment.Cancelled if asked to stop
     */
    public Run ask(Asked asked, Listener listener, BooleanSupplier cancelled) {
        if (prior.isEmpty()) {
            findPrior(listener, cancelled);
        }
        List<Check> checks = new ArrayList<>();
        List<Answer> answers = new ArrayList<>();
        long start = System.nanoTime();
        try (ChatCache cache = open(asked)) {
            int read = kept;
            for (int point = 0; point < stretches.size(); point++) {
                int[] stretch = stretches.get(point);
                if (point == 0) {
                    cache.read(Arrays.copyOf(stretch, kept));
                    cache.pin();
                }
                for (int at = point == 0 ? kept : 0; at < stretch.length; ) {
                    stop(cancelled);
                    int n = Math.min(setup.block(), stretch.length - at);
                    cache.read(Arrays.copyOfRange(stretch, at, at + n));
                    at += n;
                    read += n;
                    listener.at((double) read / length, String.format(Locale.ROOT, "%,d tokens", read));
                }
                cache.flush();
                for (String question : FactsWords.CHECKS) {
                    stop(cancelled);
                    checks.add(check(cache, read, chat.points().get(point), question));
                }
            }
            double seconds = (System.nanoTime() - start) / 1e9;
            int used = cache.used();
            for (FactsChat.Fact fact : chat.facts()) {
                stop(cancelled);
                answers.add(answer(cache, fact));
                listener.at(1, answers.size() + " of " + chat.facts().size() + " questions");
            }
            return new Run(
                    asked.name(),
                    asked.parameters(),
                    asked.cells(),
                    cache.allocated(),
                    used,
                    length,
                    seconds,
                    answers,
                    checks);
        }
    }

    private static void stop(BooleanSupplier cancelled) {
        if (cancelled.getAsBoolean()) {
            throw new Experiment.Cancelled();
        }
    }

    private ChatCache open(Asked asked) {
        if (asked.strategy() == null) { // as many cells as the others are given
            return new ContextShift(model, asked.cells() + setup.block(), setup.block(), setup.compute());
        }
        CacheOptions options = asked.strategy().keepsAll()
                ? CacheOptions.unlimited(length + setup.block(), setup.block())
                : CacheOptions.of(asked.cells(), setup.block());
        return new CompressedChat(model, asked.strategy(), options.with(setup.compute()));
    }

    /** How likely values are to one who has heard nothing of them: names are not equally common. */
    private void findPrior(Listener listener, BooleanSupplier cancelled) {
        ChatMessage system = ChatMessage.system(FactsWords.SYSTEM);
        CacheOptions options = CacheOptions.unlimited(8 * setup.block(), setup.block());
        try (ChatCache cache = new CompressedChat(model, new Full(), options.with(setup.compute()))) {
            int[] begun = new int[0];
            Map<String, float[]> found = new HashMap<>();
            List<FactsChat.Fact> all = new ArrayList<>(chat.facts());
            FactsWords.CHECKS.forEach(question -> all.add(checked(question)));
            for (FactsChat.Fact fact : all) {
                stop(cancelled);
                listener.at((double) found.size() / all.size(), "what is likely without a conversation");
                int[] prompt = asked(List.of(system), fact.question(), fact.lead());
                if (begun.length == 0) {
                    begun = Arrays.copyOf(prompt, shared(system));
                    cache.read(begun);
                    cache.flush();
                }
                MemorySegment logits = begin(cache, Arrays.copyOfRange(prompt, begun.length, prompt.length));
                found.put(fact.question(), logits(logits, fact));
                cache.forget();
            }
            prior.putAll(found);
        }
    }

    /** A question that the rule is checked with, as a fact: the word is told by the system prompt. */
    private FactsChat.Fact checked(String question) {
        return new FactsChat.Fact("rule", 0, question, "", chat.opener(), chat.openers());
    }

    private Check check(ChatCache cache, int read, int messages, String question) {
        MemorySegment logits = begin(cache, prompt(messages, question, ""));
        Choice choice = choose(logits, checked(question));
        String said = generate(cache, logits, words -> true); // one will do
        return new Check(read, question, said, begins(said, chat.opener()), choice.rank, choice.nats);
    }

    private Answer answer(ChatCache cache, FactsChat.Fact fact) {
        int all = chat.messages().size();
        String said =
                generate(cache, begin(cache, prompt(all, fact.question(), "")), words -> contains(words, fact.value()));
        Choice choice = choose(begin(cache, prompt(all, fact.question(), fact.lead())), fact);
        cache.forget();
        return new Answer(
                fact.kind(),
                fact.question(),
                fact.value(),
                said,
                contains(said, fact.value()),
                choice.rank,
                choice.nats);
    }

    /** What comes after so many messages: the question, and the beginning of its answer. */
    private int[] prompt(int messages, String question, String lead) {
        List<ChatMessage> before = chat.messages().subList(0, messages);
        return after(tokens(before, false), asked(before, question, lead));
    }

    private int[] asked(List<ChatMessage> before, String question, String lead) {
        List<ChatMessage> asked = new ArrayList<>(before);
        asked.add(ChatMessage.user(question));
        return written.led(asked, lead);
    }

    /** Of the first tokens of a fact's values. */
    private float[] logits(MemorySegment logits, FactsChat.Fact fact) {
        float[] found = new float[fact.values().size()];
        for (int i = 0; i < found.length; i++) {
            found[i] = logit(
                    logits,
                    FactsChat.first(
                            text -> model.tokenize(text, false, false),
                            fact.lead(),
                            fact.values().get(i)));
        }
        return found;
    }

    private MemorySegment begin(ChatCache cache, int[] prompt) {
        if (prompt.length + setup.answer() >= setup.block()) {
            throw new KvmergeException.Usage("a question of " + prompt.length + " tokens and an answer of "
                    + setup.answer() + " do not fit into a block of " + setup.block()
                    + ": give a larger --block, or fewer --answer tokens");
        }
        cache.prepare(prompt.length + setup.answer());
        return cache.ask(prompt);
    }

    /**
     * The likeliest answer; what was asked is forgotten.
     *
     * @param enough whether these whole words, one at least, are all that has to be known
     */
    private String generate(ChatCache cache, MemorySegment first, Predicate<String> enough) {
        return GreedyAnswer.of(model, cache, first, setup.answer(), text -> {
            String words = words(text);
            int last = words.lastIndexOf(' '); // what comes after it may go on
            return last > 0 && enough.test(words.substring(0, last));
        });
    }

    private static float logit(MemorySegment logits, int token) {
        return logits.getAtIndex(ValueLayout.JAVA_FLOAT, token);
    }

    private record Choice(int rank, double nats) {}

    /** How likely the right value is among the forty, beside how likely it was before the conversation. */
    private Choice choose(MemorySegment logits, FactsChat.Fact fact) {
        float[] now = logits(logits, fact);
        float[] before = prior.get(fact.question());
        int right = fact.values().indexOf(fact.value());
        double mine = now[right] - before[right];
        int rank = 1;
        double sum = 0;
        for (int i = 0; i < now.length; i++) {
            double other = now[i] - before[i];
            rank += i != right && other >= mine ? 1 : 0;
            sum += Math.exp(other - mine);
        }
        return new Choice(rank, Math.log(sum));
    }

    /** Whether a text has a word, whatever its letters' case and what stands around it. */
    static boolean contains(String text, String word) {
        return (' ' + words(text) + ' ').contains(' ' + words(word) + ' ');
    }

    /** Whether a text's first word is this one. */
    static boolean begins(String text, String word) {
        return (words(text) + ' ').startsWith(words(word) + ' ');
    }

    private static String words(String text) {
        return text.toLowerCase(Locale.ROOT).replaceAll("[^\\p{L}\\p{N}]+", " ").strip();
    }
}
