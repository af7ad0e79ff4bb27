package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Each text tells what is asked for, and nothing else tells it. */
@Tag("fast")
class RulerTextsTest {
    private static final String BOOK = book(3000);

    /** Sentences of ten words that are drawn. */
    private static String book(int words) {
        Random random = new Random(1);
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < words; i++) {
            random.ints(5 + random.nextInt(4), 'a', 'z' + 1).forEach(c -> text.append((char) c));
            text.append(i % 10 == 9 ? ". " : " ");
        }
        return text.toString();
    }

    /** Half a token a letter, about as tokenizers have it; with the longest question and answer. */
    private static int length(RulerText text) {
        return text.text().length() / 2
                + text.questions().stream()
                        .mapToInt(q -> (q.question() + q.lead()).length() / 2
                                + q.task().answer())
                        .max()
                        .orElseThrow();
    }

    private static RulerText make(RulerTask.Kind kind, int tokens, long seed, int index) {
        return new RulerTexts(BOOK, seed).make(kind, tokens, index, RulerTextsTest::length);
    }

    static Stream<Arguments> texts() {
        return Arrays.stream(RulerTask.Kind.values()).flatMap(kind -> Stream.of(1500, 4096, 8192)
                .flatMap(tokens -> Stream.of(0, 1, 2).map(i -> Arguments.of(kind, tokens, i))));
    }

    private static int count(String text, String part) {
        return text.split(Pattern.quote(part), -1).length - 1;
    }

    @ParameterizedTest
    @MethodSource("texts")
    void whatIsAskedForIsTold(RulerTask.Kind kind, int tokens, int index) {
        RulerText text = make(kind, tokens, 7, index);
        Set<RulerTask> tasks =
                text.questions().stream().map(RulerText.Question::task).collect(Collectors.toSet());
        assertEquals(
                Arrays.stream(RulerTask.values()).filter(t -> t.kind() == kind).collect(Collectors.toSet()), tasks);
        Set<String> questions = new HashSet<>();
        for (RulerText.Question q : text.questions()) {
            assertTrue(questions.add(q.question()), q.question());
            assertEquals(q.expected().size(), Set.copyOf(q.expected()).size());
            for (String answer : q.expected()) {
                assertEquals(0, RulerText.matches(q.question() + q.lead(), List.of(answer)), q + " tells it");
            }
            switch (q.task()) {
                case VT -> assertEquals(Set.copyOf(q.expected()), assigned(text.text(), q.question()));
                case CWE -> assertEquals(Set.copyOf(q.expected()), frequent(listed(text.text()), 10));
                case FWE -> assertEquals(Set.copyOf(q.expected()), frequent(coded(text.text()), 3));
                default -> q.expected().forEach(answer -> told(text.text(), q.question(), answer));
            }
        }
    }

    /** A number stands once, behind a key of the question. */
    private static void told(String text, String question, String number) {
        assertEquals(1, count(text, number), number);
        Matcher told = Pattern.compile("One of the secret numbers for ([a-z]+-[a-z]+) is: " + number + "\\.")
                .matcher(text);
        assertTrue(told.find() && question.contains(told.group(1)), question + " " + number);
    }

    /** Runs the assignments. */
    private static Set<String> assigned(String text, String question) {
        Map<String, String> values = new HashMap<>();
        Matcher line = Pattern.compile("VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\\d{5})\\n")
                .matcher(text);
        while (line.find()) {
            String from = line.group(2);
            String value = Character.isDigit(from.charAt(0)) ? from : values.get(from);
            assertTrue(value != null, from + " is assigned before it has a value");
            assertEquals(null, values.put(line.group(1), value), line.group() + " a second time");
        }
        String value = question.replaceAll("\\D+", "");
        return values.entrySet().stream()
                .filter(e -> e.getValue().equals(value))
                .map(Map.Entry::getKey)
                .collect(Collectors.toSet());
    }

    /** The words of the last list: the first is an example. */
    private static List<String> listed(String text) {
        return Arrays.stream(text.substring(text.lastIndexOf('\n') + 1).split(" ?\\d+\\. "))
                .filter(w -> !w.isEmpty())
                .toList();
    }

    private static List<String> coded(String text) {
        return Arrays.stream(text.substring(text.lastIndexOf('\n') + 1).split(" "))
                .filter(w -> !w.equals("..."))
                .toList();
    }

    /** The most frequent words, which have to be more frequent than the next. */
    private static Set<String> frequent(List<String> words, int n) {
        Map<String, Long> counts =
                words.stream().collect(Collectors.groupingBy(Function.identity(), Collectors.counting()));
        List<Map.Entry<String, Long>> sorted = counts.entrySet().stream()
                .sorted(Map.Entry.<String, Long>comparingByValue().reversed())
                .toList();
        assertTrue(sorted.get(n - 1).getValue() > sorted.get(n).getValue(), sorted.toString());
        assertTrue(
                sorted.stream().skip(n).noneMatch(other -> sorted.stream()
                        .limit(n)
                        .anyMatch(s -> other.getKey().contains(s.getKey()))),
                "no other word has a common one within it");
        return sorted.stream().limit(n).map(Map.Entry::getKey).collect(Collectors.toSet());
    }

    @ParameterizedTest
    @MethodSource("texts")
    void aTextFillsItsTokens(RulerTask.Kind kind, int tokens, int index) {
        int length = length(make(kind, tokens, 7, index));
        assertTrue(length <= tokens && length > tokens - 150, length + " of " + tokens);
    }

    @ParameterizedTest
    @EnumSource(RulerTask.Kind.class)
    void aSeedIsAText(RulerTask.Kind kind) {
        RulerText text = make(kind, 2000, 7, 0);
        assertEquals(text, make(kind, 2000, 7, 0));
        Set<List<String>> answers = new HashSet<>();
        for (RulerText other : List.of(text, make(kind, 2000, 8, 0), make(kind, 2000, 7, 1), make(kind, 2010, 7, 0))) {
            assertTrue(answers.add(other.questions().getFirst().expected()), "drawn anew");
        }
    }

    @Test
    void needlesLieAnywhere() {
        double[] depths = java.util.stream.IntStream.range(0, 40)
                .mapToDouble(i -> {
                    RulerText text = make(RulerTask.Kind.SINGLE, 1500, 1, i);
                    String answer = text.questions().getFirst().expected().getFirst();
                    return (double) text.text().indexOf(answer) / text.text().length();
                })
                .sorted()
                .toArray();
        assertTrue(depths[4] < 0.3 && depths[20] > 0.3 && depths[20] < 0.7 && depths[36] > 0.7);
    }

    @Test
    void whatCannotBeMadeIsRefused() {
        for (RulerTask.Kind kind : RulerTask.Kind.values()) {
            String why = assertThrows(KvmergeException.Usage.class, () -> make(kind, 40, 1, 0))
                    .getMessage();
            assertTrue(why.contains("--tokens 40") && why.contains("--tasks"), why);
        }
        RulerTexts few = new RulerTexts(book(60), 1);
        String why = assertThrows(
                        KvmergeException.Usage.class,
                        () -> few.make(RulerTask.Kind.WORDS, 4096, 0, RulerTextsTest::length))
                .getMessage();
        assertTrue(why.contains("different words") && why.contains("-f"), why);
        why = assertThrows(KvmergeException.Usage.class, () -> make(RulerTask.Kind.KEYS, 1 << 20, 1, 0))
                .getMessage();
        assertTrue(why.contains("different keys"), why);
        why = assertThrows(KvmergeException.Usage.class, () -> RulerTask.of(List.of("vt", "niah")))
                .getMessage();
        assertTrue(why.contains("'niah'") && why.contains("niah_multikey_1"), why);
    }

    /** A book has enough words for a text, though not for one of twice its words: nothing else is made of it. */
    @Test
    void aBookThatFillsATextIsEnough() {
        RulerTask.Kind kind = RulerTask.Kind.WORDS;
        int tokens = 2100; // a few words more than 160, and 320 are tried after them
        RulerText longest = make(kind, tokens, 1, 0);
        int used = Set.copyOf(listed(longest.text())).size() + 20; // with the example's
        RulerTexts enough = new RulerTexts(book(used + 40), 1);
        RulerText text = enough.make(kind, tokens, 0, RulerTextsTest::length);
        int length = length(text);
        assertTrue(length <= tokens && length > tokens - 20, length + " of " + tokens);
        RulerTexts less = new RulerTexts(book(used - 10), 1);
        assertThrows(KvmergeException.Usage.class, () -> less.make(kind, tokens, 0, RulerTextsTest::length));
    }

    @Test
    void keysAreMadeOfDifferentWords() {
        Set<String> all = new HashSet<>(RulerWords.ADJECTIVES);
        all.addAll(RulerWords.NOUNS);
        assertEquals(RulerWords.ADJECTIVES.size() + RulerWords.NOUNS.size(), all.size());
        assertFalse(all.contains(""));
        assertNotEquals(RulerWords.ADJECTIVES, RulerWords.NOUNS);
    }

    @ParameterizedTest
    @CsvSource({
        "'1234567', '1234567', 1",
        "'are: 7654321 and 1234567.', '1234567 7654321', 2",
        "'ABCDE, fghij', 'abcde FGHIJ KLMNO', 2",
        "'123456', '1234567', 0",
        "'', '1234567', 0"
    })
    void anAnswerHasSomeOfWhatIsExpected(String said, String expected, int found) {
        assertEquals(found, RulerText.matches(said, List.of(expected.split(" "))));
    }
}
