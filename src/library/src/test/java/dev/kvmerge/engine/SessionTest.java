package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What a session promises of reading and generating. */
@Tag("model")
class SessionTest {
    private final Engine engine =
            Engine.of(TestModel.model(), EngineOptions.usual().withCells(128).withBlock(32));

    @AfterEach
    void close() {
        engine.close();
    }

    @Test
    void greedyIsRepeatableAndGoesOn() {
        StringBuilder streamed = new StringBuilder();
        Generation whole;
        try (Session session = engine.open()) {
            whole = session.generate("Once upon a time", GenerateOptions.greedy(40), streamed::append);
        }
        assertEquals(whole.text(), streamed.toString());
        assertEquals(40, whole.tokens().length);
        try (Session session = engine.open()) {
            Generation first = session.generate("Once upon a time", GenerateOptions.greedy(15), t -> {});
            Generation second = session.generate("", GenerateOptions.greedy(25), t -> {});
            assertEquals(whole.text(), first.text() + second.text());
        }
    }

    @Test
    void aTextLongerThanTheCellsIsReadAndWrittenOn() {
        try (Session session = engine.open()) {
            session.read(TestModel.book(0, 500), ReadOptions.usual());
            assertArrayEquals(TestModel.book(0, 500), session.tokens());
            assertEquals(
                    8, session.generate("", GenerateOptions.greedy(8), t -> {}).tokens().length);
            assertTrue(session.cells().cellsInUse() <= 128 + 32);
            assertEquals(508, session.tokens().length);
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
