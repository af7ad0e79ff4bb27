package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.ToIntFunction;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/** Makes the texts of RULER's tasks, by a seed: prose and words come from a book, all else is drawn. */
final class RulerTexts {
    /** Tokens of the shortest text whose words are repeated as often as RULER's. */
    private static final int FULL_REPEATS = 4096;

    private static final String JUNK = Retrieval.Puzzle.passkey().filler().strip();
    private static final int KEYS = 4; // of a text in prose, with a number each; one more has as many numbers
    private static final int ASKED = 4; // keys of a text that has nothing else
    private static final int CHAINS = 2;
    private static final int HOPS = 4; // assignments of a chain after its first
    private static final int COMMON = 10;
    private static final int FREQUENT = 3;
    private static final int CODE = 6; // letters of an invented word
    private static final double ALPHA = 2; // frequencies of invented words fall as their rank to this power
    private static final double ZETA = Math.PI * Math.PI / 6; // the sum of all ranks to the power -2
    private static final int TOKENS_A_CODE = 50;

    private final List<String> sentences;
    private final List<String> words;
    private final long seed;

    /** @param book prose, of which the sentences and the words of five to nine letters are used */
    RulerTexts(String book, long seed) {
        String prose = book.replaceAll("\\s+", " ").strip();
        this.sentences = Text.sentences(prose);
        this.words = Arrays.stream(prose.split("[^A-Za-z]+"))
                .filter(word -> word.matches("[a-z]{5,9}"))
                .collect(Collectors.toCollection(TreeSet::new))
                .stream()
                .toList();
        this.seed = seed;
    }

    /**
     * The longest text of a kind within a number of tokens.
     *
     * @param index which of them: each is drawn by itself
     * @param length of a text with its longest question and answer, in tokens
     * @throws KvmergeException.Usage if the tokens do not hold the least of such texts, or there are too few words to
     *     fill them
     */
    RulerText make(RulerTask.Kind kind, int tokens, int index, ToIntFunction<RulerText> length) {
        int fits = 0; // units of a text: sentences, lines or words
        int not = Integer.MAX_VALUE;
        RulerText longest = null;
        KvmergeException.Usage tooFew = null; // why the shortest that is known not to fit cannot be drawn
        for (int units = least(kind); fits + 1 < not; ) {
            RulerText text = null;
            KvmergeException.Usage refused = null;
            try {
                text = draw(kind, tokens, index, units);
            } catch (KvmergeException.Usage e) {
                if (longest == null) {
                    throw e;
                }
                refused = e; // the doubled size may be: one between may still do
            }
            if (text != null && length.applyAsInt(text) <= tokens) {
                fits = units;
                longest = text;
                units = not == Integer.MAX_VALUE ? 2 * units : fits + (not - fits) / 2;
            } else if (longest == null) {
                throw new KvmergeException.Usage("--tokens " + tokens + " do not hold a text for " + tasks(kind)
                        + ": give more tokens, or leave it out of --tasks");
            } else {
                not = units;
                tooFew = refused;
                units = fits + (not - fits) / 2;
            }
        }
        if (tooFew != null) { // a shorter text would be taken for one of so many tokens
            throw tooFew;
        }
        return longest;
    }

    private static String tasks(RulerTask.Kind kind) {
        return Arrays.stream(RulerTask.values())
                .filter(task -> task.kind() == kind)
                .map(RulerTask::label)
                .collect(Collectors.joining(", "));
    }

    /** Units of the shortest text of a kind. */
    private static int least(RulerTask.Kind kind) {
        return switch (kind) {
            case SINGLE, NEEDLES -> 2 * KEYS;
            case KEYS -> ASKED;
            case CHAINS -> HOPS + 1;
            case WORDS -> 2 * COMMON;
            case CODES -> 20 * CODE; // fewer do not tell the third word from the fourth
        };
    }

    private RulerText draw(RulerTask.Kind kind, int tokens, int index, int units) {
        long mixed = seed;
        for (long part : new long[] {kind.ordinal(), tokens, index}) {
            mixed = mixed * 1_000_003 + part;
        }
        Random random = new Random(mixed);
        return switch (kind) {
            case SINGLE -> single(random, units);
            case NEEDLES -> needles(random, units);
            case KEYS -> keys(random, units);
            case CHAINS -> chains(random, units);
            case WORDS -> words(random, units, tokens);
            case CODES -> codes(random, units, tokens);
        };
    }

    private static RulerText hidden(String text, List<RulerText.Question> questions) {
        return new RulerText(
                "Some secret numbers are hidden in the following text. Memorize them: you will be asked for them"
                        + " afterwards.\n\n" + text,
                questions);
    }

    private RulerText single(Random random, int n) {
        String key = pairs(random, 1).getFirst();
        String value = numbers(random, 1, 7).getFirst();
        return hidden(prose(random, n, List.of(told(key, value))), List.of(one(RulerTask.NIAH_SINGLE_2, key, value)));
    }

    private RulerText needles(Random random, int n) {
        List<String> keys = pairs(random, KEYS + 1);
        List<String> values = numbers(random, 2 * KEYS, 7);
        List<String> told = new ArrayList<>();
        List<RulerText.Question> questions = new ArrayList<>();
        for (int i = 0; i < KEYS; i++) {
            told.add(told(keys.get(i), values.get(i)));
            questions.add(one(RulerTask.NIAH_MULTIKEY_1, keys.get(i), values.get(i)));
        }
        values.subList(KEYS, 2 * KEYS).forEach(value -> told.add(told(keys.get(KEYS), value)));
        String several = String.join(", ", keys.subList(0, KEYS - 1)) + ", and " + keys.get(KEYS - 1);
        questions.add(all(RulerTask.NIAH_MULTIQUERY, several, values.subList(0, KEYS)));
        questions.add(all(RulerTask.NIAH_MULTIVALUE, keys.get(KEYS), values.subList(KEYS, 2 * KEYS)));
        Collections.shuffle(told, random);
        return hidden(prose(random, n, told), questions);
    }

    private RulerText keys(Random random, int n) {
        List<String> keys = pairs(random, n);
        List<String> values = numbers(random, n, 7);
        String text = IntStream.range(0, n)
                .mapToObj(i -> told(keys.get(i), values.get(i)))
                .collect(Collectors.joining("\n"));
        List<RulerText.Question> questions = places(random, n, ASKED).stream()
                .map(i -> one(RulerTask.NIAH_MULTIKEY_2, keys.get(i), values.get(i)))
                .toList();
        return hidden(text, questions);
    }

    private static String told(String key, String value) {
        return "One of the secret numbers for " + key + " is: " + value + ".";
    }

    private static RulerText.Question one(RulerTask task, String key, String value) {
        String what = "the secret number for " + key + " that the text tells";
        return new RulerText.Question(task, "What is " + what + "?", upper(what) + " is", List.of(value));
    }

    private static RulerText.Question all(RulerTask task, String key, List<String> values) {
        String what = "the secret numbers for " + key + " that the text tells";
        return new RulerText.Question(task, "What are all " + what + "?", upper(what) + " are", List.copyOf(values));
    }

    private static String upper(String text) {
        return Character.toUpperCase(text.charAt(0)) + text.substring(1);
    }

    /** Sentences of the book, from one of them on, with others between them. */
    private String prose(Random random, int n, List<String> between) {
        int first = random.nextInt(sentences.size());
        List<Integer> before = places(random, n + 1, between.size());
        StringBuilder text = new StringBuilder();
        for (int i = 0; i <= n; i++) {
            int told = before.indexOf(i);
            if (told >= 0) {
                text.append(' ').append(between.get(told));
            }
            if (i < n) {
                text.append(' ')
                        .append(sentences.get((first + i) % sentences.size()).strip());
            }
        }
        return text.toString().strip();
    }

    private RulerText chains(Random random, int n) {
        List<String> names = letters(random, (CHAINS + 1) * (HOPS + 1), 5, 'A');
        List<String> values = numbers(random, CHAINS + 1, 5);
        // An example, as RULER has one: without it small models do not know what is wanted.
        List<String> shown = names.subList(CHAINS * (HOPS + 1), names.size());
        RulerText.Question example = chain(shown, values.get(CHAINS));
        StringBuilder text = new StringBuilder(
                        tracked(random, HOPS + 1, List.of(shown), values.subList(CHAINS, CHAINS + 1)))
                .append("\nQuestion: ")
                .append(example.question())
                .append("\nAnswer: ")
                .append(example.lead())
                .append(' ')
                .append(String.join(", ", shown))
                .append("\n\n");
        List<List<String>> chains = IntStream.range(0, CHAINS)
                .mapToObj(c -> names.subList(c * (HOPS + 1), (c + 1) * (HOPS + 1)))
                .toList();
        text.append(tracked(random, n, chains, values));
        return new RulerText(
                text.toString(),
                IntStream.range(0, CHAINS)
                        .mapToObj(c -> chain(chains.get(c), values.get(c)))
                        .toList());
    }

    private static RulerText.Question chain(List<String> names, String value) {
        return new RulerText.Question(
                RulerTask.VT,
                "Find all variables that are assigned the value " + value + " in the text above.",
                "According to the chain of assignments in the text above, " + names.size()
                        + " variables are assigned the value " + value + ", they are:",
                List.copyOf(names));
    }

    /** Lines of junk with chains of assignments between them, each in its order. */
    private static String tracked(Random random, int n, List<List<String>> chains, List<String> values) {
        List<List<String>> before = Stream.generate(() -> (List<String>) new ArrayList<String>())
                .limit(n)
                .toList();
        for (int c = 0; c < chains.size(); c++) {
            List<String> names = chains.get(c);
            List<Integer> at = places(random, n, names.size()).stream().sorted().toList();
            for (int i = 0; i < names.size(); i++) {
                String from = i == 0 ? values.get(c) : "VAR " + names.get(i - 1);
                before.get(at.get(i)).add("VAR " + names.get(i) + " = " + from);
            }
        }
        return "Memorize and track the chains of variable assignments that are hidden in the following text.\n\n"
                + before.stream()
                        .flatMap(lines -> Stream.concat(lines.stream(), Stream.of(JUNK)))
                        .collect(Collectors.joining("\n"));
    }

    private RulerText words(Random random, int n, int tokens) {
        boolean full = tokens >= FULL_REPEATS;
        List<String> drawn = draw(random, n + 2 * COMMON);
        List<String> shown = drawn.subList(n, n + 2 * COMMON);
        List<String> common = drawn.subList(0, COMMON);
        String question = "What are the " + COMMON + " most common words in the above list?";
        String lead = "The " + COMMON + " words that appear most often in the list are:";
        String example = listed(random, shown.subList(0, COMMON), shown.subList(COMMON, 2 * COMMON), 6, 1)
                + "\nQuestion: " + question + "\nAnswer: " + lead + " " + numbered(shown.subList(0, COMMON)) + "\n\n";
        return new RulerText(
                example + listed(random, common, drawn.subList(COMMON, n), full ? 30 : 6, full ? 3 : 1),
                List.of(new RulerText.Question(RulerTask.CWE, question, lead, common)));
    }

    /** Words of the book, none of which is a part of another: an answer is matched by its letters. */
    private List<String> draw(Random random, int n) {
        List<String> pool = new ArrayList<>(words);
        Collections.shuffle(pool, random);
        List<String> drawn = new ArrayList<>();
        for (String word : pool) {
            if (drawn.size() < n && drawn.stream().noneMatch(d -> d.contains(word) || word.contains(d))) {
                drawn.add(word);
            }
        }
        if (drawn.size() < n) {
            throw new KvmergeException.Usage("the text (-f) has only " + drawn.size() + " different words for "
                    + RulerTask.CWE.label() + ", which needs " + n + ": use a longer text or fewer --tokens");
        }
        return List.copyOf(drawn);
    }

    private static String listed(Random random, List<String> common, List<String> others, int often, int seldom) {
        List<String> all = new ArrayList<>();
        IntStream.range(0, often).forEach(i -> all.addAll(common));
        IntStream.range(0, seldom).forEach(i -> all.addAll(others));
        Collections.shuffle(all, random);
        return "Below is a numbered list of words. In these words, some appear more often than others. Memorize the"
                + " ones that appear most often.\n" + numbered(all);
    }

    private static String numbered(List<String> words) {
        return IntStream.range(0, words.size())
                .mapToObj(i -> (i + 1) + ". " + words.get(i))
                .collect(Collectors.joining(" "));
    }

    private RulerText codes(Random random, int n, int tokens) {
        List<String> codes = new ArrayList<>(letters(random, Math.max(2 * CODE, tokens / TOKENS_A_CODE), CODE, 'a'));
        codes.set(0, "..."); // the most frequent is noise
        List<String> all = new ArrayList<>();
        for (int rank = 1; rank <= codes.size(); rank++) {
            int times = (int) (n * Math.pow(rank, -ALPHA) / ZETA);
            all.addAll(Collections.nCopies(times, codes.get(rank - 1)));
        }
        Collections.shuffle(all, random);
        return new RulerText(
                "Read the following coded text and track how often each coded word appears. Find the three that"
                        + " appear most often.\n" + String.join(" ", all),
                List.of(new RulerText.Question(
                        RulerTask.FWE,
                        "Ignore the dots '...'. What are the three words that appear most often in the coded text"
                                + " above? Do not explain.",
                        "According to the coded text above, the three words that appear most often are:",
                        List.copyOf(codes.subList(1, 1 + FREQUENT)))));
    }

    /** Different keys. */
    private static List<String> pairs(Random random, int n) {
        int nouns = RulerWords.NOUNS.size();
        int most = RulerWords.ADJECTIVES.size() * nouns;
        if (n > most / 2) {
            throw new KvmergeException.Usage("there are no " + n + " different keys for "
                    + RulerTask.NIAH_MULTIKEY_2.label() + ": give fewer --tokens");
        }
        return places(random, most, n).stream()
                .map(i -> RulerWords.ADJECTIVES.get(i / nouns) + "-" + RulerWords.NOUNS.get(i % nouns))
                .toList();
    }

    /** Different numbers of so many digits. */
    private static List<String> numbers(Random random, int n, int digits) {
        int least = (int) Math.pow(10, digits - 1);
        return places(random, 9 * least, n).stream()
                .map(i -> Integer.toString(least + i))
                .toList();
    }

    /** Different words of so many letters. */
    private static List<String> letters(Random random, int n, int length, char first) {
        Set<String> made = new LinkedHashSet<>();
        while (made.size() < n) {
            made.add(random.ints(length, 0, 26)
                    .mapToObj(i -> String.valueOf((char) (first + i)))
                    .collect(Collectors.joining()));
        }
        return List.copyOf(made);
    }

    /** Different numbers below a limit, in no order. */
    private static List<Integer> places(Random random, int limit, int n) {
        Set<Integer> drawn = new LinkedHashSet<>();
        while (drawn.size() < n) {
            drawn.add(random.nextInt(limit));
        }
        return List.copyOf(drawn);
    }
}
