package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.function.BooleanSupplier;
import java.util.stream.Collectors;

/**
 * Tasks of RULER's kinds, asked of compressed caches. A text is read once a cache, and each question about it is asked
 * on its own from there and taken back.
 */
public final class Ruler {
    /** Reads a text whole and compresses it once, in place of blocks. */
    public static final int WHOLE = 0;

    /**
     * How to ask.
     *
     * @param known whether the questions stand before the text, too, so that they are known when it is compressed
     * @param block tokens between two compressions, or {@link #WHOLE}
     * @param seed of all that is drawn
     */
    public record Setup(List<RulerTask> tasks, boolean known, int block, long seed, ComputeSettings compute) {
        public Setup {
            tasks = List.copyOf(tasks);
        }
    }

    /**
     * A text to read: all asked tasks of its kind.
     *
     * @param tokens of it, with its longest question and answer, at most
     * @param index which of the texts of this kind and length
     */
    public record Item(String kind, int tokens, int index) {}

    /**
     * A text that was read into a cache, and what was answered.
     *
     * @param parameters the strategy's, as text: what tells readings of caches of one name apart
     * @param compression share of the cells to save, 0 where everything is kept
     * @param read tokens of the text that was compressed
     * @param cells that stay of them
     * @param seconds that reading and asking took
     */
    public record Reading(
            Item item,
            String cache,
            String parameters,
            double compression,
            int read,
            int cells,
            double seconds,
            List<Answer> answers) {}

    /**
     * An answer.
     *
     * @param found how many of the expected it contains
     */
    public record Answer(String task, String question, List<String> expected, String said, int found) {
        /** The share that was found. */
        public double score() {
            return (double) found / expected.size();
        }
    }

    private final Model model;
    private final ChatTokens chat;
    private final Setup setup;
    private final RulerTexts texts;
    private Item prepared; // the last, since the caches read the same one after the other
    private Prompts prompts;

    /** @param book prose, between which things are hidden */
    public Ruler(Model model, ChatTemplate template, String book, Setup setup) {
        this.model = model;
        this.chat = new ChatTokens(model, template);
        this.setup = setup;
        this.texts = new RulerTexts(book, setup.seed());
    }

    /** The texts of some lengths: so many of each kind, the first of each before the second of any. */
    public List<Item> items(List<Integer> lengths, int each) {
        List<Item> items = new ArrayList<>();
        for (int i = 0; i < each; i++) {
            for (int tokens : lengths) {
                for (RulerTask.Kind kind : RulerTask.Kind.values()) {
                    if (setup.tasks().stream().anyMatch(task -> task.kind() == kind)) {
                        items.add(new Item(kind.name().toLowerCase(Locale.ROOT), tokens, i));
                    }
                }
            }
        }
        return items;
    }

    /** The questions of the tasks that are asked. */
    private List<RulerText.Question> asked(RulerText text) {
        return text.questions().stream()
                .filter(q -> setup.tasks().contains(q.task()))
                .toList();
    }

    /** Tokens of a text and its questions. */
    record Prompts(int[] read, List<RulerText.Question> questions, List<int[]> rest) {
        /** Most tokens that are asked and answered after the text. */
        int room() {
            int most = 0;
            for (int i = 0; i < rest.size(); i++) {
                most = Math.max(
                        most, rest.get(i).length + questions.get(i).task().answer());
            }
            return most;
        }
    }

    private Prompts prompts(RulerText text) {
        List<RulerText.Question> questions = asked(text);
        // Where the text ends is where two prompts part that go on with different questions.
        List<int[]> all = new ArrayList<>();
        questions.forEach(q -> all.add(chat.led(message(text, questions, q.question()), q.lead())));
        int[] other = chat.of(message(text, questions, "Z"), true);
        int end = ChatTokens.shared(chat.of(message(text, questions, "A"), true), other);
        for (int[] prompt : all) {
            end = Math.min(end, ChatTokens.shared(prompt, other));
        }
        int from = end;
        return new Prompts(
                Arrays.copyOf(all.getFirst(), from),
                questions,
                all.stream().map(p -> Arrays.copyOfRange(p, from, p.length)).toList());
    }

    private List<ChatMessage> message(RulerText text, List<RulerText.Question> questions, String question) {
        String before = setup.known()
                ? questions.stream()
                        .map(q -> "- " + q.question() + "\n")
                        .collect(Collectors.joining("", "You will be asked about a text:\n", "\n"))
                : "";
        return List.of(ChatMessage.user(before + text.text() + "\n\n" + question));
    }

    Prompts prepare(Item item) {
        if (!item.equals(prepared)) {
            RulerTask.Kind kind = RulerTask.Kind.valueOf(item.kind().toUpperCase(Locale.ROOT));
            RulerText text = texts.make(kind, item.tokens(), item.index(), made -> {
                Prompts p = prompts(made);
                return p.read().length + p.room();
            });
            prompts = prompts(text);
            prepared = item;
        }
        return prompts;
    }

    /**
     * Reads a text into a cache and asks.
     *
     * @throws KvmergeException.Usage if the tokens do not hold such a text, or the cells not what the strategy needs
     * @throws Experiment.Cancelled if asked to stop
     */
    public Reading ask(Item item, Cache cache, Facts.Listener listener, BooleanSupplier cancelled) {
        Prompts asked = prepare(item);
        int[] read = asked.read();
        int cells = cache.cells(read.length);
        int block = setup.block() == WHOLE ? read.length : setup.block();
        int room = Math.max(block, asked.room() + 1); // questions and answers are not to be compressed
        cache.check(setup.block() == WHOLE ? 1 : block, read.length);
        CacheOptions options =
                cache.isFull() ? CacheOptions.unlimited(read.length + room, room) : CacheOptions.of(cells, room);
        List<Answer> answers = new ArrayList<>();
        long start = System.nanoTime();
        try (ChatCache chatCache = new CompressedChat(model, cache.strategy(), options.with(setup.compute()))) {
            for (int at = 0; at < read.length; ) {
                stop(cancelled);
                int n = Math.min(block, read.length - at);
                chatCache.read(Arrays.copyOfRange(read, at, at + n));
                chatCache.flush();
                at += n;
                listener.at((double) at / read.length, String.format(Locale.ROOT, "%,d tokens", at));
            }
            for (int i = 0; i < asked.questions().size(); i++) {
                stop(cancelled);
                RulerText.Question question = asked.questions().get(i);
                String said = GreedyAnswer.of(
                        model,
                        chatCache,
                        chatCache.ask(asked.rest().get(i)),
                        question.task().answer(),
                        text -> RulerText.matches(text, question.expected())
                                == question.expected().size());
                answers.add(new Answer(
                        question.task().label(),
                        question.question(),
                        question.expected(),
                        said,
                        RulerText.matches(said, question.expected())));
                listener.at(1, answers.size() + " of " + asked.questions().size() + " questions");
            }
        }
        double seconds = (System.nanoTime() - start) / 1e9;
        return new Reading(
                item, cache.name(), cache.parameters(), cache.compression(), read.length, cells, seconds, answers);
    }

    private static void stop(BooleanSupplier cancelled) {
        if (cancelled.getAsBoolean()) {
            throw new Experiment.Cancelled();
        }
    }
}
