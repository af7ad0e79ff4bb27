package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.Model;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * A session that was saved or forked goes on as the one that it was of, bit for bit; what is no such file is refused.
 */
@Tag("native")
class SavedSessionTest extends TinyEngine {
    private static GenerateOptions penalised(int n) {
        return GenerateOptions.usual()
                .withMaxTokens(n)
                .withIgnoreEos(true)
                .withLogprobs(0)
                .withSampling(Sampling.usual().withTemperature(2).withSeed(5).withPenalties(1.1f, 30, .1f, .1f));
    }

    /** Half-way through a generation, in the middle of a block. */
    private static Session begun(Engine engine) {
        Session session = engine.open();
        session.read(
                "a text that is read before anything is generated, longer than there are cells for it: ".repeat(2));
        session.generate("", penalised(41), t -> {});
        return session;
    }

    private static void goesOnAlike(Session one, Session other) {
        assertArrayEquals(one.tokens(), other.tokens());
        Generation expected = one.generate("", penalised(70), t -> {});
        Generation seen = other.generate("", penalised(70), t -> {});
        assertArrayEquals(expected.tokens(), seen.tokens());
        assertEquals(expected.text(), seen.text());
        for (int i = 0; i < 70; i++) {
            assertEquals(
                    expected.logprobs().get(i).logprob(), seen.logprobs().get(i).logprob(), 0.0);
        }
        assertEquals(one.cells().cellsInUse(), other.cells().cellsInUse());
    }

    @Test
    void aSavedSessionGoesOnBitForBit() {
        Path file = folder.resolve("saved.session");
        try (Engine engine = engine(1);
                Engine later = engine(1);
                Session session = begun(engine)) {
            session.save(file);
            session.save(file); // over the old one
            try (Session restored = later.restore(file)) {
                goesOnAlike(session, restored);
                session.read("and more");
                restored.read("and more");
                goesOnAlike(session, restored);
            }
            assertFalse(Files.exists(folder.resolve("saved.session.part")));
        }
    }

    @Test
    void aSessionTakesOverAnother() {
        Path file = folder.resolve("other.session");
        try (Engine engine = engine(2);
                Session session = begun(engine);
                Session other = engine.open()) {
            session.save(file);
            other.generate("it has something of its own", penalised(20), t -> {});
            other.load(file);
            goesOnAlike(session, other);
            int[] before = other.tokens();
            assertThrows(KvmergeException.class, () -> other.load(folder.resolve("none.session")));
            assertArrayEquals(before, other.tokens());
            goesOnAlike(session, other);
        }
    }

    @Test
    void anEmptySessionCanBeSaved() {
        Path file = folder.resolve("empty.session");
        try (Engine engine = engine(3);
                Session empty = engine.open()) {
            empty.pin(); // of nothing
            empty.save(file);
            try (Session restored = engine.restore(file);
                    Session fork = empty.fork()) {
                for (Session session : List.of(restored, fork)) {
                    assertEquals(0, session.tokens().length);
                    session.generate("a", penalised(3), t -> {});
                }
            }
        }
    }

    @Test
    void aForkGoesOnBitForBit() {
        try (Engine engine = engine(2);
                Session session = begun(engine)) {
            try (Session fork = session.fork()) {
                assertThrows(KvmergeException.Usage.class, session::fork, "all sessions are taken");
                goesOnAlike(session, fork);
                session.generate("one way", penalised(40), t -> {});
                int before = fork.tokens().length;
                assertEquals(before, fork.tokens().length);
            }
            assertEquals(1, engine.freeSessions());
        }
    }

    @Test
    void whatIsPinnedStaysAndComesBackWithAFile() {
        Path file = folder.resolve("pinned.session");
        try (Engine engine = engine(2);
                Session session = engine.open()) {
            session.read("never forgotten");
            int pinned = session.tokens().length;
            session.pin();
            session.read("x".repeat(400));
            assertEquals(pinned, session.usage().pinned());
            assertEquals(pinned, session.cells().pinned());
            session.save(file);
            try (Session restored = engine.restore(file)) {
                restored.read("y".repeat(400));
                session.read("y".repeat(400));
                for (Session one : List.of(session, restored)) {
                    CellsView cells = one.cells();
                    assertEquals(one.tokens().length, cells.tokens());
                    for (int token = 0; token < pinned; token++) {
                        assertArrayEquals(new double[] {1, 0, 0}, cells.shares(token));
                    }
                    double[] after = cells.shares(pinned + 30);
                    assertEquals(1, after[0] + after[1] + after[2], 1e-9);
                    assertTrue(after[0] < 1, "others are merged or dropped");
                }
                goesOnAlike(session, restored);
            }
            Session full = engine.open();
            full.read("z".repeat(CELLS));
            assertThrows(KvmergeException.Usage.class, full::pin);
            full.read("on");
        }
    }

    @Test
    void theViewOfTheCellsAgreesWithTheCells() {
        try (Engine engine = engine(1);
                Session session = begun(engine)) {
            CellsView cells = session.cells();
            int kept = 0;
            int n = cells.tokens();
            for (int token = 0; token < n; token++) {
                CellsView.Fate fate = cells.fate(1, 1, token);
                kept += fate == CellsView.Fate.KEPT ? 1 : 0;
                if (fate == CellsView.Fate.MERGED) {
                    assertEquals(CellsView.Fate.KEPT, cells.fate(1, 1, cells.pivot(1, 1, token)));
                }
            }
            assertEquals(cells.cellsInUse(), kept);
            assertEquals(
                    new CellsUsage(n, cells.cellsInUse(), cells.cellsAllocated(), cells.bytes(), 0), session.usage());
            assertEquals(CellsView.Fate.KEPT, cells.fate(0, 0, n - 1), "the newest");
            assertTrue(cells.bytes() > 0);
            assertThrows(IllegalArgumentException.class, () -> cells.fate(2, 0, 0));
            assertThrows(IllegalArgumentException.class, () -> cells.fate(0, 0, n));
            int[] before = session.tokens();
            session.generate("", penalised(10), t -> {});
            assertEquals(n, cells.tokens(), "a picture of one moment");
            assertEquals(before.length + 10, session.tokens().length);
        }
    }

    @Test
    void aModelWithSlidingWindowsGeneratesAndSaysThatItCannotBeSaved() {
        Geometry gemma = new Geometry("gemma3", 4, 2, 16, 10000, "none", 16, false, 32, 2);
        Path file = folder.resolve("windows.session");
        try (Model windows = Model.load(
                        model.library(), TinyGguf.writeWords(folder.resolve("windows.gguf"), gemma), Backend.CPU, 0);
                Engine engine = Engine.of(windows, options(2));
                Session session = engine.open()) {
            session.read("pinned all the same");
            session.pin();
            session.read("x".repeat(300));
            assertEquals(20, session.generate("", penalised(20), t -> {}).tokens().length);
            assertArrayEquals(new double[] {1, 0, 0}, session.cells().shares(0));
            for (KvmergeException refused : List.of(
                    assertThrows(KvmergeException.class, () -> session.save(file)),
                    assertThrows(KvmergeException.class, session::fork))) {
                assertTrue(refused.getMessage().contains("sliding windows"), refused.getMessage());
            }
            assertFalse(Files.exists(file));
            assertEquals(1, engine.freeSessions());
            assertEquals(20, session.generate("", penalised(20), t -> {}).tokens().length);
        }
    }

    private static void refused(Engine engine, Path file, String why) {
        String message =
                assertThrows(KvmergeException.class, () -> engine.restore(file)).getMessage();
        assertTrue(message.contains(why) && message.contains(file.toString()), message);
        assertEquals(engine.options().sessions(), engine.freeSessions(), "no session is left");
    }

    @Test
    void whatIsNoSavedSessionIsRefused() throws IOException {
        Path file = folder.resolve("good.session");
        Path bad = folder.resolve("bad.session");
        try (Engine engine = engine(1)) {
            try (Session session = begun(engine)) {
                session.save(file);
            }
            byte[] good = Files.readAllBytes(file);
            refused(engine, folder.resolve("none.session"), "no saved session");
            for (int n : new int[] {0, 5, 8, 11, 20, 44, 200, good.length / 2, good.length - 33, good.length - 1}) {
                Files.write(bad, Arrays.copyOf(good, n));
                refused(engine, bad, n < 8 ? "is no saved session" : "truncated or damaged");
            }
            for (int at : new int[] {15, 100, good.length / 2, good.length - 40, good.length - 1}) {
                byte[] damaged = good.clone();
                damaged[at] ^= 1;
                Files.write(bad, damaged);
                refused(engine, bad, "truncated or damaged");
            }
            Files.write(bad, Arrays.copyOf(good, good.length + 1));
            refused(engine, bad, "truncated or damaged");
            Files.write(bad, signed(good, ByteBuffer.allocate(4).putInt(0).array(), 8));
            refused(engine, bad, "has format 0");
            Files.write(bad, signed(good, "?".getBytes(), 0));
            refused(engine, bad, "is no saved session");
        }
        try (Engine smaller = Engine.of(model, options(1).withCells(CELLS - 1))) {
            refused(smaller, file, "cells " + CELLS);
        }
        Geometry another = new Geometry("llama", 4, 2, 16, 20000, "none", 16, false);
        try (Model foreign = Model.load(
                        model.library(), TinyGguf.writeWords(folder.resolve("another.gguf"), another), Backend.CPU, 0);
                Engine other = Engine.of(foreign, options(1))) {
            refused(other, file, "another model");
        }
        try (Engine engine = engine(1);
                Session session = engine.open()) {
            String message = assertThrows(
                            KvmergeException.class, () -> session.save(folder.resolve("no/such/folder.session")))
                    .getMessage();
            assertTrue(message.contains("cannot save"), message);
            session.generate("it goes on", penalised(3), t -> {});
        }
    }

    /** With bytes replaced, and a digest that is right. */
    private static byte[] signed(byte[] good, byte[] with, int at) {
        byte[] changed = good.clone();
        System.arraycopy(with, 0, changed, at, with.length);
        try {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(Arrays.copyOf(changed, changed.length - 32));
            System.arraycopy(digest, 0, changed, changed.length - 32, 32);
        } catch (NoSuchAlgorithmException e) {
            throw new AssertionError(e);
        }
        return changed;
    }
}
