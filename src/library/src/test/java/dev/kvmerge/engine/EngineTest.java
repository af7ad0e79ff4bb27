package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.Generation.Ended;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.logging.Filter;
import java.util.logging.Logger;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What an engine and its sessions promise, on a tiny model with random weights. */
@Tag("native")
class EngineTest extends TinyEngine {
    private static final int MANY = 300;

    private static String whole(int[] tokens) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        for (int token : tokens) {
            bytes.writeBytes(model.piece(token));
        }
        return bytes.toString(StandardCharsets.UTF_8);
    }

    @Test
    void textIsStreamedInWholeCharacters() {
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            List<String> pieces = new ArrayList<>();
            Generation g = session.generate(prompt(20), drawn(200), pieces::add);
            assertEquals(200, g.tokens().length);
            assertEquals(Ended.LENGTH, g.ended());
            assertEquals(g.text(), String.join("", pieces));
            String all = whole(g.tokens());
            assertTrue(
                    all.equals(g.text())
                            || all.startsWith(g.text())
                                    && all.length() <= g.text().length() + 1,
                    "at most a character that was cut is missing");
            for (String piece : pieces) {
                assertEquals(piece, new String(piece.getBytes(StandardCharsets.UTF_8), StandardCharsets.UTF_8));
            }
        }
    }

    @Test
    void aTextOfMoreTokensThanBytesIsRead() {
        String spaces =
                " ".repeat(100); // three bytes each to SentencePiece, of which this vocabulary has no longer words
        int[] tokens = model.tokenize(spaces, false, false);
        assertEquals(300, tokens.length);
        assertEquals(spaces, whole(tokens).replace('\u2581', ' '));
    }

    @Test
    void theSameSeedDrawsTheSameAndGoesOnWhereItEnded() {
        try (Engine engine = engine(3);
                Session one = engine.open();
                Session two = engine.open();
                Session other = engine.open()) {
            Generation whole = one.generate(prompt(20), drawn(MANY), t -> {});
            Generation first = two.generate(prompt(20), drawn(MANY / 3), t -> {});
            Generation rest = two.generate("", drawn(MANY / 3), t -> {});
            Generation last = two.generate("", drawn(MANY / 3), t -> {});
            assertArrayEquals(
                    whole.tokens(),
                    Stream.of(first, rest, last)
                            .flatMapToInt(g -> IntStream.of(g.tokens()))
                            .toArray());
            assertEquals(whole.text(), first.text() + rest.text() + last.text());
            assertArrayEquals(one.tokens(), two.tokens());
            GenerateOptions seed = drawn(MANY).withSampling(drawn(1).sampling().withSeed(8));
            assertFalse(Arrays.equals(
                    whole.tokens(), other.generate(prompt(20), seed, t -> {}).tokens()));
        }
    }

    @Test
    void greedyIsTheLikeliestTokenBitForBit() {
        try (Engine engine = engine(2);
                Session one = engine.open();
                Session two = engine.open()) {
            GenerateOptions options =
                    GenerateOptions.greedy(100).withIgnoreEos(true).withLogprobs(3);
            Generation a = one.generate(prompt(150), options, t -> {});
            Generation b = two.generate(prompt(150), options, t -> {});
            assertArrayEquals(a.tokens(), b.tokens());
            assertEquals(100, a.logprobs().size());
            for (int i = 0; i < 100; i++) {
                TokenLogprob place = a.logprobs().get(i);
                assertEquals(a.tokens()[i], place.token());
                assertEquals(place.logprob(), b.logprobs().get(i).logprob(), 0.0);
                assertEquals(3, place.top().size());
                assertTrue(place.top().get(0).logprob() >= place.top().get(1).logprob());
                assertTrue(place.top().get(1).logprob() >= place.top().get(2).logprob());
                assertTrue(place.logprob() < 0 && place.logprob() > -20);
                boolean ends = model.endsGeneration(place.top().getFirst().token());
                assertTrue(ends || place.top().getFirst().token() == place.token());
            }
        }
    }

    @Test
    void aStopStringEndsTheTextBeforeItAndTheSessionGoesOn() {
        try (Engine engine = engine(2);
                Session one = engine.open();
                Session two = engine.open()) {
            String text = one.generate(prompt(20), drawn(MANY), t -> {}).text();
            String stop = text.substring(50, 53);
            StringBuilder streamed = new StringBuilder();
            Generation g =
                    two.generate(prompt(20), drawn(MANY).withStop(List.of("no such text", stop)), streamed::append);
            assertEquals(Ended.STOP, g.ended());
            assertEquals(stop, g.stop());
            assertEquals(text.substring(0, text.indexOf(stop)), g.text());
            assertEquals(g.text(), streamed.toString());
            assertTrue(two.generate(prompt(3), drawn(5), t -> {}).tokens().length == 5);
        }
    }

    @Test
    void theModelEndsAGeneration() {
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            Map<Integer, Float> ends = Map.of(model.eos(), 1e6f);
            GenerateOptions options =
                    GenerateOptions.greedy(10).withSampling(Sampling.greedy().withLogitBias(ends));
            Generation g = session.generate(prompt(20), options, t -> {});
            assertEquals(Ended.END_OF_GENERATION, g.ended());
            assertEquals("", g.text());
            assertArrayEquals(new int[] {model.eos()}, g.tokens());
            assertNull(g.stop());
            assertEquals(
                    Ended.LENGTH,
                    session.generate("", options.withIgnoreEos(true), t -> {}).ended());
        }
    }

    @Test
    void aGrammarIsObeyed() {
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            GenerateOptions options = drawn(100)
                    .withIgnoreEos(false)
                    .withSampling(drawn(1).sampling().withGrammar("root ::= [a-c]{20} \"xy\""));
            Generation g = session.generate(prompt(20), options, t -> {});
            assertEquals(Ended.END_OF_GENERATION, g.ended());
            assertTrue(g.text().matches("[a-c]{20}xy"), g.text());
            session.clear();
            String half = session.generate(prompt(20), options.withMaxTokens(9), t -> {})
                    .text();
            assertEquals(g.text(), half + session.generate("", options, t -> {}).text());
            int read = session.tokens().length;
            for (String bad :
                    List.of("root ::= (", "nothing ::= \"a\"", "root ::= root \"a\"", "(".repeat(1000), "\0")) {
                GenerateOptions wrong = drawn(5).withIgnoreEos(false)
                        .withSampling(Sampling.greedy().withGrammar(bad));
                String message = assertThrows(
                                KvmergeException.Usage.class, () -> session.generate(prompt(5), wrong, t -> {}))
                        .getMessage();
                assertTrue(message.contains("--grammar"), message);
            }
            assertEquals(read, session.tokens().length, "refused before anything was read");
            GenerateOptions nothing = drawn(5).withIgnoreEos(false)
                    .withSampling(Sampling.greedy()
                            .withGrammar("root ::= \"a\"")
                            .withLogitBias(Map.of(
                                    model.tokenize("a", false, false)[0],
                                    Float.NEGATIVE_INFINITY,
                                    5 + 'a',
                                    Float.NEGATIVE_INFINITY)));
            assertTrue(assertThrows(KvmergeException.class, () -> session.generate(prompt(5), nothing, t -> {}))
                    .getMessage()
                    .contains("no token can follow"));
        }
    }

    @Test
    void penaltiesAndBiasesChangeWhatIsChosen() {
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            int[] favourite = session.generate(prompt(20), GenerateOptions.greedy(1), t -> {})
                    .tokens();
            session.clear();
            Sampling biased = Sampling.greedy().withLogitBias(Map.of(favourite[0], Float.NEGATIVE_INFINITY));
            Generation other =
                    session.generate(prompt(20), GenerateOptions.greedy(1).withSampling(biased), t -> {});
            assertNotEquals(favourite[0], other.tokens()[0]);
            session.clear();
            Sampling same = Sampling.greedy().withLogitBias(Map.of(5 + 'q', 100f));
            Generation q =
                    session.generate(prompt(20), GenerateOptions.greedy(10).withSampling(same), t -> {});
            assertEquals("q".repeat(10), q.text());
            session.clear();
            Generation penalised = session.generate(
                    prompt(20), GenerateOptions.greedy(10).withSampling(same.withPenalties(1, 64, 200, 0)), t -> {});
            assertEquals(1, penalised.text().chars().filter(c -> c == 'q').count(), penalised.text());
            session.clear();
            Sampling unknown = Sampling.greedy().withLogitBias(Map.of(100_000, 1f));
            assertTrue(assertThrows(
                            KvmergeException.Usage.class,
                            () -> session.generate(
                                    "a", GenerateOptions.greedy(1).withSampling(unknown), t -> {}))
                    .getMessage()
                    .contains("100000"));
        }
    }

    @Test
    void whatACallbackThrowsEndsTheGenerationAndTheSessionGoesOn() {
        try (Engine engine = engine(2);
                Session broken = engine.open();
                Session whole = engine.open()) {
            Generation expected = whole.generate(prompt(20), drawn(60), t -> {});
            int[] calls = {0};
            RuntimeException mine = new ArithmeticException("mine");
            assertEquals(
                    mine,
                    assertThrows(
                            ArithmeticException.class,
                            () -> broken.generate(prompt(20), drawn(60), t -> {
                                if (++calls[0] == 10) {
                                    throw mine;
                                }
                            })));
            int done = broken.tokens().length - (prompt(20).length() + 1);
            Generation rest = broken.generate("", drawn(60 - done), t -> {});
            assertArrayEquals(Arrays.copyOfRange(expected.tokens(), done, 60), rest.tokens());
            assertThrows(
                    ArithmeticException.class,
                    () -> broken.read(new int[MANY], ReadOptions.usual().withProgress((n, all) -> {
                        throw mine;
                    })));
            assertEquals(5, broken.generate("", drawn(5), t -> {}).tokens().length);
            IllegalStateException inside = assertThrows(
                    IllegalStateException.class, () -> broken.generate("", drawn(500), t -> broken.read("x")));
            assertTrue(inside.getMessage().contains("calls back"), inside.getMessage());
            assertThrows(IllegalStateException.class, () -> broken.generate("", drawn(500), t -> close(broken)));
            assertThrows(IllegalStateException.class, () -> broken.generate("", drawn(500), t -> close(engine)));
            assertEquals(5, broken.generate("", drawn(5), t -> {}).tokens().length);
        }
    }

    @Test
    void promptsAreReadInBlocksOfTheirOwn() {
        try (Engine engine = Engine.of(model, options(1).withPromptBlock(2 * BLOCK + 6));
                Session session = engine.open()) {
            List<Integer> done = new ArrayList<>();
            ReadOptions told = ReadOptions.usual().withProgress((n, all) -> done.add(n));
            assertEquals(180, session.read(new int[180], told));
            assertEquals(List.of(70, 140, 180), done);
            assertEquals(CELLS, session.usage().cellsInUse(), "the last 40 are more than a block");
            assertEquals(20, session.read(new int[20], told));
            assertEquals(CELLS + 20, session.usage().cellsInUse());
            session.generate("", drawn(BLOCK), t -> {});
            assertTrue(session.usage().cellsInUse() < CELLS + BLOCK, "a generation's blocks are as they were");
        }
        assertThrows(KvmergeException.Usage.class, () -> options(1).withPromptBlock(-1));
    }

    @Test
    void progressIsToldAndReadingIsCancelled() {
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            List<Integer> done = new ArrayList<>();
            assertEquals(100, session.read(new int[100], ReadOptions.usual().withProgress((n, all) -> {
                assertEquals(100, all);
                done.add(n);
            })));
            assertEquals(List.of(32, 64, 96, 100), done);
            int read = session.read(new int[MANY], ReadOptions.usual().withProgress((n, all) -> {
                if (n >= 64) {
                    session.cancel();
                }
            }));
            assertEquals(64, read);
            assertEquals(164, session.tokens().length);
            Generation g =
                    session.generate(new int[] {9}, GenerateOptions.greedy(4).withIgnoreEos(true), t -> {});
            assertEquals(1, g.readTokens());
            assertEquals(169, session.tokens().length);
        }
    }

    @Test
    void cancelInterruptAndTimeoutEndAGenerationAndTheSessionGoesOn() throws Exception {
        try (Engine engine = engine(2);
                Session session = engine.open();
                Session whole = engine.open()) {
            GenerateOptions endless = drawn(1_000_000);
            assertEquals(
                    Ended.CANCELLED,
                    session.generate(prompt(20), endless, t -> session.cancel()).ended());
            assertEquals(
                    Ended.CANCELLED,
                    session.generate("", endless, t -> Thread.currentThread().interrupt())
                            .ended());
            assertTrue(Thread.interrupted(), "the interrupt is still there");
            assertEquals(
                    Ended.TIMEOUT,
                    session.generate("", endless.withTimeout(Duration.ofMillis(50)), t -> {})
                            .ended());
            CountDownLatch begun = new CountDownLatch(1);
            FutureTask<Generation> other =
                    new FutureTask<>(() -> session.generate("", endless, t -> begun.countDown()));
            Thread.ofVirtual().start(other);
            assertTrue(begun.await(60, TimeUnit.SECONDS));
            assertThrows(IllegalStateException.class, () -> session.read("x"));
            session.cancel();
            assertEquals(Ended.CANCELLED, other.get(60, TimeUnit.SECONDS).ended());
            int n = session.tokens().length - 21;
            Generation expected = whole.generate(prompt(20), drawn(n + 10), t -> {});
            assertArrayEquals(
                    Arrays.copyOfRange(expected.tokens(), n, n + 10),
                    session.generate("", drawn(10), t -> {}).tokens());
        }
    }

    @Test
    void aTextMayBeLongerThanTheModelsPositions() {
        List<String> warnings = Collections.synchronizedList(new ArrayList<>());
        Logger log = Logger.getLogger("dev.kvmerge");
        Filter before = log.getFilter();
        log.setFilter(record -> {
            warnings.add(record.getMessage());
            return false;
        });
        try (Engine ranged = engine(1);
                Engine growing = Engine.of(model, options(1).withPositionRange(0));
                Session session = ranged.open();
                Session warned = growing.open()) {
            assertTrue(model.trainedContext() < 1000);
            session.read(new int[1500], ReadOptions.usual());
            assertEquals(5, session.generate("", drawn(5), t -> {}).tokens().length);
            assertEquals(List.of(), warnings);
            warned.read(new int[1500], ReadOptions.usual());
            assertEquals(1, warnings.size());
        } finally {
            log.setFilter(before);
        }
    }

    @Test
    void whatCannotBeIsRefusedByName() {
        Map<Runnable, String> wrong = Map.ofEntries(
                Map.entry(() -> Sampling.greedy().withTemperature(-1), "temperature"),
                Map.entry(() -> Sampling.greedy().withTemperature(Float.NaN), "temperature"),
                Map.entry(() -> Sampling.greedy().withTopK(-1), "topK"),
                Map.entry(() -> Sampling.greedy().withTopP(1.5f), "topP"),
                Map.entry(() -> Sampling.greedy().withMinP(Float.NaN), "minP"),
                Map.entry(() -> Sampling.greedy().withTypicalP(-.1f), "typicalP"),
                Map.entry(() -> Sampling.greedy().withPenalties(0, 64, 0, 0), "repeatPenalty"),
                Map.entry(() -> Sampling.greedy().withPenalties(1, -1, 0, 0), "repeatLastN"),
                Map.entry(() -> Sampling.greedy().withPenalties(1, 64, Float.POSITIVE_INFINITY, 0), "presence"),
                Map.entry(() -> Sampling.greedy().withPenalties(1, 64, 0, Float.NaN), "frequency"),
                Map.entry(() -> Sampling.greedy().withSeed(1L << 32), "seed"),
                Map.entry(() -> Sampling.greedy().withLogitBias(Map.of(1, Float.NaN)), "logitBias"),
                Map.entry(() -> GenerateOptions.greedy(-1), "maxTokens"),
                Map.entry(() -> GenerateOptions.greedy(1).withStop(List.of("")), "stop"),
                Map.entry(() -> GenerateOptions.greedy(1).withTimeout(Duration.ZERO), "timeout"),
                Map.entry(() -> GenerateOptions.greedy(1).withLogprobs(1000), "logprobs"),
                Map.entry(
                        () -> GenerateOptions.greedy(1)
                                .withIgnoreEos(true)
                                .withSampling(Sampling.greedy().withGrammar("root ::= \"a\"")),
                        "ignoreEos"),
                Map.entry(() -> EngineOptions.usual().withCells(0), "cells"),
                Map.entry(() -> EngineOptions.usual().withSessions(1000), "sessions"));
        wrong.forEach((make, name) -> assertTrue(
                assertThrows(KvmergeException.Usage.class, make::run)
                        .getMessage()
                        .contains(name),
                name));
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            assertThrows(KvmergeException.Usage.class, () -> session.generate("", GenerateOptions.greedy(1), t -> {}));
            assertThrows(
                    KvmergeException.Usage.class,
                    () -> session.generate(new int[] {1, 1 << 20}, GenerateOptions.greedy(1), t -> {}));
            assertEquals(0, session.tokens().length);
            assertEquals(0, session.cells().cellsInUse());
        }
    }

    /** Without javac's warning of a close that a try would have done. */
    @SuppressWarnings("try")
    private static void close(AutoCloseable resource) {
        try {
            resource.close();
        } catch (RuntimeException e) {
            throw e;
        } catch (Exception e) {
            throw new AssertionError(e);
        }
    }
}
