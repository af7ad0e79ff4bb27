package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.Model;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.FutureTask;
import java.util.stream.Stream;
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
        }
        nothingHalfWrittenIsLeft();
    }

    private static void nothingHalfWrittenIsLeft() {
        try (Stream<Path> files = Files.list(folder)) {
            assertTrue(files.noneMatch(f -> f.toString().endsWith(".part")));
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    @Test
    void twoSessionsMaySaveToOneNameAtOnce() throws Exception {
        Path file = folder.resolve("both.session");
        try (Engine engine = engine(2);
                Engine later = engine(1);
                Session one = begun(engine);
                Session other = begun(engine)) {
            List<FutureTask<Boolean>> saving = new ArrayList<>();
            for (Session session : List.of(one, other)) {
                saving.add(new FutureTask<>(
                        () -> {
                            for (int i = 0; i < 20; i++) {
                                session.save(file);
                            }
                        },
                        true));
                Thread.ofPlatform().start(saving.getLast());
            }
            for (FutureTask<Boolean> task : saving) {
                assertTrue(task.get());
            }
            try (Session restored = later.restore(file)) {
                goesOnAlike(one, restored);
            }
        }
        nothingHalfWrittenIsLeft();
    }

    /** Where a file has the numbers that count something. */
    private static int skip(ByteBuffer in, int at, int bytesEach) {
        return at + 4 + in.getInt(at) * bytesEach;
    }

    @Test
    void aFileWithNumbersThatCannotBeChangesNothing() throws IOException {
        Path file = folder.resolve("right.session");
        Path bad = folder.resolve("hostile.session");
        try (Engine engine = engine(1)) {
            int n;
            try (Session session = begun(engine)) {
                session.save(file);
                n = session.tokens().length;
            }
            byte[] good = Files.readAllBytes(file);
            ByteBuffer in = ByteBuffer.wrap(good);
            int tokens = skip(in, skip(in, 12, 1), 1);
            int decoded = skip(in, tokens, 4);
            int rest = skip(in, decoded + 4, 1);
            int logits = skip(in, rest, 1);
            int pinned = skip(in, logits, 4);
            int messages = pinned + 5;
            int drawing = messages + 5; // seven floats, topK, lastN, seed
            int biases = skip(in, drawing + 7 * 4 + 2 * 4 + 8, 1);
            int drawn = biases + 4 + 1 + 4;
            assertEquals(n, in.getInt(tokens));
            assertEquals(41, in.getInt(drawn + 8), "this is the format");
            int most = Integer.MAX_VALUE;
            int[][] cases = {
                {tokens, -1, most, good.length / 4},
                {tokens + 4, -1, model.vocabularySize()},
                {decoded, -1, n + 1},
                {decoded + 4, -1, most},
                {rest, -1, 4, most},
                {logits, -1, 5, most},
                {pinned, -1, n + 1},
                {messages, -1, most},
                {drawing, Float.floatToIntBits(Float.NaN), Float.floatToIntBits(-1)},
                {drawing + 36, most},
                {biases, -1, most},
                {drawn, 1, most, -1},
                {drawn + 8, -1, n + 1}
            };
            try (Session session = engine.open()) {
                session.read("something of its own");
                int[] before = session.tokens();
                for (int[] one : cases) {
                    for (int i = 1; i < one.length; i++) {
                        byte[] with = ByteBuffer.allocate(4).putInt(one[i]).array();
                        Files.write(bad, signed(good, with, one[0]));
                        String message = assertThrows(KvmergeException.class, () -> session.load(bad))
                                .getMessage();
                        assertTrue(message.contains("truncated or damaged"), message);
                        assertArrayEquals(before, session.tokens());
                        assertEquals(before.length, session.usage().tokens());
                    }
                }
                session.load(file);
                assertEquals(n, session.tokens().length);
            }
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
    void whereNothingCanBeWrittenIsNamed() throws IOException {
        Path none = folder.resolve("none");
        Path there = Files.createDirectories(folder.resolve("there"));
        try (Engine engine = engine(1);
                Session session = begun(engine)) {
            String missing = assertThrows(KvmergeException.class, () -> session.save(none.resolve("x.session")))
                    .getMessage();
            assertTrue(missing.endsWith("there is no folder " + none.toAbsolutePath()), missing);
            String folder = assertThrows(KvmergeException.class, () -> session.save(there))
                    .getMessage();
            assertTrue(folder.endsWith("that is a folder"), folder);
            session.generate("", penalised(3), t -> {});
        }
        nothingHalfWrittenIsLeft();
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
    void aModelWithSlidingWindowsIsSavedForkedAndGoesBackToItsPinnedPrefix() {
        Geometry gemma = new Geometry("gemma3", 4, 2, 16, 10000, "none", 16, false, 32, 2);
        Path file = folder.resolve("windows.session");
        try (Model windows = Model.load(
                        model.library(), TinyGguf.writeWords(folder.resolve("windows.gguf"), gemma), Backend.CPU, 0);
                Engine engine = Engine.of(windows, options(2));
                Engine later = Engine.of(windows, options(1));
                Session session = engine.open()) {
            session.read("pinned");
            session.pin();
            int[] pinned = session.tokens();
            session.read("x".repeat(300));
            assertEquals(20, session.generate("", penalised(20), t -> {}).tokens().length);
            assertArrayEquals(new double[] {1, 0, 0}, session.cells().shares(0));
            session.save(file);
            try (Session restored = later.restore(file);
                    Session fork = session.fork()) {
                goesOnAlike(session, restored);
                session.load(file);
                goesOnAlike(session, fork);
                int[] whole = Arrays.copyOf(pinned, pinned.length + 1); // another text after the same prefix
                whole[pinned.length] = windows.tokenize("y", false, false)[0];
                int[] again = restored.complete(whole, penalised(20), t -> {}).tokens();
                assertEquals(pinned.length, restored.usage().pinned());
                try (Engine other = Engine.of(windows, options(1));
                        Session fresh = other.open()) {
                    fresh.read("pinned");
                    fresh.pin();
                    fresh.complete(whole, penalised(0), t -> {});
                    assertArrayEquals(
                            again, fresh.generate("", penalised(20), t -> {}).tokens());
                }
            }
            try (Engine another = engine(1)) {
                refused(another, file, "another model");
            }
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
