package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A conversation tells each fact once, and nothing else tells it. */
@Tag("fast")
class FactsChatTest {
    private static final int AROUND = 5;

    /** A token a word. */
    private static int[] words(String text) {
        return Arrays.stream(text.strip().split("\\s+"))
                .filter(w -> !w.isEmpty())
                .mapToInt(String::hashCode)
                .toArray();
    }

    private static FactsChat make(long seed, int count, int tokens) {
        return FactsChat.make(seed, count, tokens, AROUND, FactsChatTest::words);
    }

    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5})
    void eachFactIsToldInItsMessageAndNowhereElse(long seed) {
        FactsChat chat = make(seed, 40, 6000);
        assertEquals(40, chat.facts().size());
        Set<String> questions = new HashSet<>();
        Set<String> values = new HashSet<>();
        for (FactsChat.Fact fact : chat.facts()) {
            assertTrue(questions.add(fact.question()), fact.question());
            assertTrue(values.add(fact.kind() + fact.value()), fact.value());
            assertEquals(40, Set.copyOf(fact.values()).size());
            assertTrue(fact.values().contains(fact.value()));
            for (int i = 0; i < chat.messages().size(); i++) {
                boolean told = i == fact.message() || i == fact.message() + 1; // the assistant says it again
                ChatMessage message = chat.messages().get(i);
                assertEquals(told, Facts.contains(message.content(), fact.value()), fact + " in " + message);
            }
            assertTrue(chat.messages().get(fact.message() + 1).content().contains(fact.lead() + " " + fact.value()));
        }
        String system = chat.messages().getFirst().content();
        assertTrue(system.contains('"' + chat.opener() + '"'), system);
        assertFalse(
                chat.messages().stream().skip(1).anyMatch(m -> Facts.contains(m.content(), chat.opener())),
                "only the system prompt has the word");
        for (int i = 1; i < chat.messages().size(); i++) {
            assertEquals(
                    i % 2 == 1 ? "user" : "assistant", chat.messages().get(i).role());
            String content = chat.messages().get(i).content();
            assertFalse(content.matches("(?s).*[{}|%?].*"), "talk, in which nobody asks: " + content);
        }
    }

    @ParameterizedTest
    @CsvSource({"40, 4000", "40, 8000", "40, 20000", "1, 150", "7, 1000"})
    void itIsAsLongAsItIsToBe(int count, int tokens) {
        FactsChat chat = make(1, count, tokens);
        int length = chat.messages().stream()
                .mapToInt(m -> words(m.content()).length + AROUND)
                .sum();
        assertTrue(length <= tokens && length > tokens - 120, length + " of " + tokens);
        assertEquals(chat.messages().size(), chat.points().getLast());
        assertEquals(chat.points().stream().sorted().distinct().toList(), chat.points());
        // Facts are spread over all of it.
        List<Integer> at = chat.facts().stream().map(FactsChat.Fact::message).toList();
        assertTrue(at.getFirst() == 1 && at.getLast() >= (chat.messages().size() - 1) * (count - 1) / count - 10);
    }

    @Test
    void aSeedIsAConversation() {
        assertEquals(make(7, 40, 4000), make(7, 40, 4000));
        assertNotEquals(make(7, 40, 4000).facts(), make(8, 40, 4000).facts());
    }

    @Test
    void whatCannotBeToldIsRefused() {
        String why = assertThrows(KvmergeException.Usage.class, () -> make(1, 40, 1000))
                .getMessage();
        assertTrue(why.contains("40 facts") && why.contains("--tokens"), why);
        why = assertThrows(
                        KvmergeException.class,
                        () -> FactsChat.make(1, 40, 4000, AROUND, text -> Arrays.stream(words(text))
                                .map(w -> w % 7)
                                .toArray()))
                .getMessage();
        assertTrue(why.contains("apart by their first tokens"), why);
    }

    @Test
    void valuesAreToldApartByTheirFirstTokens() {
        FactsChat chat = make(1, 40, 4000);
        chat.facts()
                .forEach(fact -> assertEquals(
                        40,
                        fact.values().stream()
                                .map(v -> FactsChat.first(FactsChatTest::words, fact.lead(), v))
                                .collect(Collectors.toSet())
                                .size()));
    }

    @ParameterizedTest
    @CsvSource({
        "'Your sister''s dog is called OSLO.', Oslo, true",
        "'**Oslo**', Oslo, true",
        "'It is Oslos', Oslo, false",
        "'', Oslo, false",
        "'No idea', Oslo, false"
    })
    void anAnswerHasAWordOrNot(String said, String value, boolean right) {
        assertEquals(right, Facts.contains(said, value));
    }

    @ParameterizedTest
    @CsvSource({
        "'Marble, a week has seven days.', true",
        "'\"marble\": seven', true",
        "'Marbles', false",
        "'A week: Marble', false",
        "'', false"
    })
    void anAnswerBeginsWithAWordOrNot(String said, boolean obeyed) {
        assertEquals(obeyed, Facts.begins(said, "Marble"));
    }
}
