package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Model;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** llama.cpp's way of going on when a context is full. */
@Tag("native")
class ContextShiftTest {
    private static final int KEEP = 10;
    private static final int BLOCK = 32;
    private static final int[] TOKENS =
            new Random(1).ints(600, 0, TinyGguf.VOCABULARY).toArray();
    private static final ComputeSettings COMPUTE = ComputeSettings.usual().withThreads(1);

    @TempDir
    Path folder;

    private Path llama;

    @BeforeEach
    void write() {
        llama = TinyGguf.write(
                folder.resolve("tiny.gguf"), new TinyGguf.Geometry("llama", 4, 2, 32, 10000, "none", 32, false));
    }

    private static int[] part(int from, int to) {
        return Arrays.copyOfRange(TOKENS, from, to);
    }

    private static float[] ask(ContextShift shift, int[] question) {
        return shift.ask(question).toArray(ValueLayout.JAVA_FLOAT);
    }

    @Test
    void theOlderHalfOfWhatIsNotKeptGoes() {
        try (Model model = Model.load(TestModel.library(), llama, Backend.CPU, 0);
                ContextShift shift = new ContextShift(model, 256, BLOCK, COMPUTE)) {
            assertEquals(256, shift.allocated());
            shift.read(part(0, KEEP));
            shift.pin();
            shift.read(part(KEEP, BLOCK));
            for (int at = BLOCK; at < 224; at += BLOCK) {
                shift.read(part(at, at + BLOCK));
            }
            assertEquals(224, shift.used());
            assertEquals(0, shift.shifts());
            float[] before = ask(shift, part(500, 520));
            shift.forget();
            assertArrayEquals(before, ask(shift, part(500, 520)), "what was asked left no trace");
            shift.forget();
            shift.read(part(224, 256)); // 224 + 32 is full
            assertEquals(1, shift.shifts());
            assertEquals(224 - (224 - KEEP) / 2 + 32, shift.used());
            for (int at = 256; at + BLOCK <= 600; at += BLOCK) {
                shift.read(part(at, at + BLOCK));
                assertTrue(shift.used() < 256, "there always is a free cell");
            }
            assertEquals(3, shift.shifts());
        }
    }

    /** Keys are rotated to where they move: in a model of one layer the shifted cache is that of the shorter text. */
    @Test
    void whatIsLeftIsAtItsNewPositions() {
        int[] text = part(0, 224);
        try (Model model = Model.load(TestModel.library(), llama, Backend.CPU, 0);
                Context moved = new Context(model, ContextOptions.of(256, 256, COMPUTE), null);
                Context twin = new Context(model, ContextOptions.of(256, 256, COMPUTE), null)) {
            moved.decode(text, 0);
            moved.removePositions(KEEP, 100);
            moved.movePositions(100, 224, KEEP - 100);
            assertEquals(224 - 90 - 1, moved.newestPosition());
            // Back again: the same cells at the positions that they had.
            moved.movePositions(KEEP, 224 - 90, 100 - KEEP);
            twin.decode(text, 0);
            twin.removePositions(KEEP, 100);
            moved.decode(part(224, 232), 224);
            twin.decode(part(224, 232), 224);
            float[] a = moved.logits().toArray(ValueLayout.JAVA_FLOAT);
            float[] b = twin.logits().toArray(ValueLayout.JAVA_FLOAT);
            assertTrue(
                    IntStream.range(0, a.length).allMatch(i -> Math.abs(a[i] - b[i]) < 0.02),
                    "rotating there and back again changes nothing beyond rounding");
            assertThrows(IllegalArgumentException.class, () -> moved.movePositions(5, 4, 1));
            assertThrows(IllegalArgumentException.class, () -> moved.movePositions(1, 4, -2));
        }
    }

    @Test
    void whatCannotShiftIsRefused() throws IOException {
        Path windows = TinyGguf.write(
                folder.resolve("windows.gguf"),
                new TinyGguf.Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, 48, 2));
        try (Model model = Model.load(TestModel.library(), windows, Backend.CPU, 0);
                Context context = new Context(model, ContextOptions.of(1024, BLOCK, COMPUTE), null)) {
            String why = assertThrows(KvmergeException.class, () -> new ContextShift(model, 1024, BLOCK, COMPUTE))
                    .getMessage();
            assertTrue(why.contains("sliding windows"), why);
            context.decode(part(0, 8), 0);
            assertThrows(KvmergeException.class, () -> context.movePositions(4, 8, -1), "llama.cpp would abort");
        }
        try (Model model = Model.load(TestModel.library(), llama, Backend.CPU, 0);
                ContextShift shift = new ContextShift(model, 256, BLOCK, COMPUTE)) {
            for (int at = 0; at < 192; at += BLOCK) {
                shift.read(part(at, at + BLOCK));
            }
            String why = assertThrows(KvmergeException.Usage.class, shift::pin).getMessage();
            assertTrue(why.contains("use more --cells"), why);
        }
    }
}
