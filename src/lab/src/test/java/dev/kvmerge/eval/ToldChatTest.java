package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Conversations to calibrate on: what is asked was told, and is none of what is measured. */
@Tag("fast")
class ToldChatTest {
    private static final int TOKENS = 4096;

    /** Sentences of nine words that differ, and now and then one that is too long. */
    private static final String TEXT = IntStream.range(0, 400)
            .mapToObj(i -> "Sentence " + i + " goes\non and says very little of what anybody would ever ask about."
                    + (i % 7 == 0 ? " Long" + ",x".repeat(90) + "." : ""))
            .collect(Collectors.joining(" "));

    /** A token is four characters, and a template has five around a message. */
    private static int length(List<ChatMessage> messages) {
        return messages.stream().mapToInt(m -> 5 + m.content().length() / 4).sum();
    }

    private static List<ChatMessage> make(long seed, int tokens) {
        return ToldChat.make(ToldChat.Form.TALK, TEXT, seed, tokens, ToldChatTest::length);
    }

    @ParameterizedTest
    @CsvSource({"0,4096", "1,4096", "2,4096", "3,4096", "4,1200", "5,1200", "6,9000", "7,9000"})
    void whatIsAskedWasToldAndSaidAgain(long seed, int tokens) {
        List<ChatMessage> all = make(seed, tokens);
        assertTrue(length(all) >= tokens && length(all) < tokens + 200, "" + length(all));
        Set<String> asked = new HashSet<>();
        int begun = 0;
        for (int i = 0; i < all.size(); i += 2) {
            assertEquals("user", all.get(i).role());
            assertEquals("assistant", all.get(i + 1).role());
            String user = all.get(i).content();
            if (!user.endsWith("?")) {
                assertEquals(Set.of(), asked, "all is told before anything is asked");
                assertTrue(user.startsWith("Sentence ") && user.endsWith(" would ever ask about."), user);
                begun = i + 2;
                continue;
            }
            assertTrue(asked.add(user), "asked once: " + user);
            String answer = all.get(i + 1).content();
            String statement = answer.substring(1, answer.length() - 1); // but for the first letter, which may be small
            int said = IntStream.range(0, all.size() / 2)
                    .filter(m -> all.get(2 * m).content().contains(statement))
                    .findFirst()
                    .orElseThrow(() -> new AssertionError("never told: " + answer));
            assertTrue(all.get(2 * said + 1).content().contains(statement), "the assistant says it again");
            assertTrue(2 * said < i, "before it is asked");
        }
        int told = length(all.subList(0, begun));
        if (tokens == 9000) {
            assertTrue(asked.size() > 80, "most of what there is to tell is told: " + asked.size());
        } else {
            assertTrue(told > 0.6 * tokens && told < 0.8 * tokens, "about seven tenths tell: " + told);
        }
        // What is over is cut, and few questions with it.
        int read = 0;
        for (int i = begun, tokensRead = told; i < all.size() && tokensRead < tokens; i += 2, read++) {
            tokensRead += length(all.subList(i, i + 2));
        }
        assertTrue(asked.size() - read <= 4, read + " of " + asked.size());
    }

    /** One message has all that is told, among the sentences of the text; the first question ends it. */
    @ParameterizedTest
    @CsvSource({"1,4096", "2,1100", "3,9000"})
    void whatIsAskedStandsInTheTextThatWasSent(long seed, int tokens) {
        List<ChatMessage> all = ToldChat.make(ToldChat.Form.TEXT, TEXT, seed, tokens, ToldChatTest::length);
        assertTrue(length(all) >= tokens && length(all) < tokens + 200, "" + length(all));
        String sent = all.getFirst().content();
        assertTrue(sent.startsWith(ToldWords.SENT) && sent.endsWith("?"), sent);
        String text = sent.substring(0, sent.lastIndexOf("\n\n"));
        Set<String> asked = new HashSet<>();
        int between = 0; // characters of the text before the first answer's thing, of some answer at least
        for (int i = 0; i < all.size(); i += 2) {
            assertEquals("user", all.get(i).role());
            assertEquals("assistant", all.get(i + 1).role());
            String question = all.get(i).content();
            assertTrue(asked.add(question.substring(question.lastIndexOf('\n') + 1)), "asked once: " + question);
            assertTrue(i == 0 || !question.contains("\n"), question);
            int at = text.indexOf(all.get(i + 1).content());
            assertTrue(at > 0, "never told: " + all.get(i + 1).content());
            between = Math.max(between, at);
        }
        assertTrue(asked.size() >= 5, "" + asked);
        int read = 0; // what is over is cut, and few questions with it
        for (int i = 0, tokensRead = 0; i < all.size(); i += 2) {
            tokensRead += length(all.subList(i, i + 2));
            read += tokensRead <= tokens ? 1 : 0;
        }
        assertTrue(read >= 0.6 * asked.size(), read + " of " + asked.size());
        assertTrue(between > 0.5 * text.length(), "things stand all over the text");
        assertTrue(text.contains("very little of what anybody would ever ask about."), "and the text between");
    }

    @Test
    void aSeedMakesOneConversation() {
        assertEquals(make(3, TOKENS), make(3, TOKENS));
        assertNotEquals(make(3, TOKENS), make(4, TOKENS));
    }

    /** Else calibrating would teach the very test. */
    @Test
    void noWordOfTheFactsIsInIt() {
        Set<String> words = Stream.concat(
                        ToldWords.KINDS.stream()
                                .flatMap(k -> Stream.concat(
                                        Stream.concat(k.things().stream(), k.values().stream()),
                                        Stream.of(k.statement(), k.question()))),
                        Stream.concat(ToldWords.LEADS.stream(), ToldWords.ANSWERS.stream()))
                .flatMap(ToldChatTest::words)
                .collect(Collectors.toSet());
        Set<String> facts = new HashSet<>(FactsWords.PEOPLE);
        FactsWords.OPENERS.stream().flatMap(ToldChatTest::words).forEach(facts::add);
        FactsWords.KINDS.forEach(
                k -> k.values().stream().flatMap(ToldChatTest::words).forEach(facts::add));
        words.retainAll(facts);
        assertEquals(Set.of(), words);
        assertTrue(Collections.disjoint(ToldWords.LEADS, FactsWords.LEADS));
        assertTrue(Collections.disjoint(ToldWords.ANSWERS, FactsWords.THANKS));
    }

    private static Stream<String> words(String text) {
        return Arrays.stream(text.toLowerCase(Locale.ROOT).split("[^a-z0-9]+")).filter(w -> !w.isEmpty());
    }

    @Test
    void eachThingHasOneValueOfItsOwn() {
        for (ToldWords.Kind kind : ToldWords.KINDS) {
            assertTrue(new HashSet<>(kind.values()).size() >= kind.things().size(), kind.statement());
            assertEquals(kind.things().size(), new HashSet<>(kind.things()).size());
        }
    }

    @Test
    void whatCannotBeIsSaid() {
        KvmergeException few = assertThrows(
                KvmergeException.Usage.class,
                () -> ToldChat.make(ToldChat.Form.TALK, "One sentence. Another one.", 1, TOKENS, ToldChatTest::length));
        assertTrue(few.getMessage().contains("it has 2 sentences"), few.getMessage());
        KvmergeException little = assertThrows(
                KvmergeException.Usage.class,
                () -> ToldChat.make(ToldChat.Form.TALK, TEXT, 1, 150, ToldChatTest::length));
        assertTrue(little.getMessage().contains("things, fewer than 5"), little.getMessage());
        KvmergeException still = assertThrows(
                KvmergeException.class,
                () -> ToldChat.make(ToldChat.Form.TALK, TEXT, 1, TOKENS, messages -> 100)); // a template of one turn
        assertTrue(still.getMessage().contains("does not write all messages"), still.getMessage());
        assertTrue(still.getMessage().contains("--conversations 0"), still.getMessage());
    }
}
