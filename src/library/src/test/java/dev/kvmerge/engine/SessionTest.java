package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.engine.Generation.Ended;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What a session promises, on a real model. EngineTest and ChatTest have the rest, on one that computes at once. */
@Tag("model")
class SessionTest {
    private final Engine engine =
            Engine.of(TestModel.model(), EngineOptions.usual().withCells(96).withBlock(32));

    @AfterEach
    void close() {
        engine.close();
    }

    @Test
    void greedyIsRepeatableAndGoesOn() {
        StringBuilder streamed = new StringBuilder();
        Generation whole;
        try (Session session = engine.open()) {
            whole = session.generate("The capital of France is", GenerateOptions.greedy(16), streamed::append);
        }
        assertTrue(whole.text().contains("Paris"), whole.text());
        assertEquals(whole.text(), streamed.toString());
        assertEquals(16, whole.tokens().length);
        try (Session session = engine.open()) {
            Generation first = session.generate("The capital of France is", GenerateOptions.greedy(6), t -> {});
            Generation second = session.generate("", GenerateOptions.greedy(10), t -> {});
            assertEquals(whole.text(), first.text() + second.text());
        }
    }

    @Test
    void aTextLongerThanTheCellsIsReadAndWrittenOn() {
        try (Session session = engine.open()) {
            session.read(TestModel.book(0, 256), ReadOptions.usual());
            assertArrayEquals(TestModel.book(0, 256), session.tokens());
            assertEquals(
                    4, session.generate("", GenerateOptions.greedy(4), t -> {}).tokens().length);
            assertTrue(session.cells().cellsInUse() <= 96 + 32);
            assertEquals(260, session.tokens().length);
        }
    }

    @Test
    void charactersOfSeveralTokensComeWhole() {
        try (Session session = engine.open()) {
            List<String> pieces = new ArrayList<>();
            Sampling smiles = Sampling.greedy().withGrammar("root ::= \"\uD83D\uDE42\uD83E\uDD80\u6F22\"");
            Generation g = session.generate("Here:", GenerateOptions.greedy(20).withSampling(smiles), pieces::add);
            assertEquals(Ended.END_OF_GENERATION, g.ended());
            assertEquals("\uD83D\uDE42\uD83E\uDD80\u6F22", g.text());
            assertTrue(g.tokens().length > 4, "several tokens a character");
            assertEquals(List.of("\uD83D\uDE42", "\uD83E\uDD80", "\u6F22"), pieces);
        }
    }

    @Test
    void sessionsAreCounted() {
        assertEquals(1, engine.freeSessions());
        Session session = engine.open();
        assertEquals(0, engine.freeSessions());
        String message =
                assertThrows(KvmergeException.Usage.class, engine::open).getMessage();
        assertTrue(message.contains("--parallel"), message);
        session.close();
        session.close();
        assertEquals(1, engine.freeSessions());
        assertThrows(IllegalStateException.class, () -> session.read("x"));
    }
}
