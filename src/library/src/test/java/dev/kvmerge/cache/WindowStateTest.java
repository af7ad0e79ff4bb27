package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.Channels;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * A state of a model with sliding windows goes on by the bit, from wherever its windows were in their ring of cells.
 */
@Tag("native")
class WindowStateTest {
    private static final int WINDOW = 48;
    private static final int BLOCK = 32;
    private static final int TIGHT = 256 - BLOCK; // a window that leaves the ring of 256 cells as many as a block

    @TempDir
    Path folder;

    /** Logits depend on every cell of a window that is there: the weights are random. */
    private Model load(String architecture, int window) {
        Geometry g = new Geometry(architecture, 4, 2, 32, 1000000, "none", 32, false, window, 2);
        return Model.load(TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0);
    }

    private static CacheOptions options(int cells, FlashAttention flash, CellType type, int ubatch) {
        return CacheOptions.of(cells, BLOCK)
                .with(ComputeSettings.usual()
                        .withThreads(1)
                        .withFlashAttention(flash)
                        .withCellTypes(type, type)
                        .withUbatch(ubatch))
                .withFates();
    }

    private static byte[] state(CompressedContext context) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        context.saveState(Channels.newChannel(bytes));
        return bytes.toByteArray();
    }

    private static void restore(CompressedContext context, byte[] state) throws IOException {
        context.restoreState(Channels.newChannel(new ByteArrayInputStream(state)));
    }

    private static int[] tokens(Random random, int n) {
        return random.ints(n, 0, TinyGguf.VOCABULARY).toArray();
    }

    private static float[] next(CompressedContext context, int[] tokens) {
        context.decode(tokens, false);
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    /** A text in pieces of any length, of which some is taken back and read otherwise. */
    private static void read(CompressedContext context, Random random, int n) {
        for (int end = context.position() + n; context.position() < end; ) {
            int most = Math.min(BLOCK, end - context.position());
            context.decode(tokens(random, 1 + random.nextInt(most)), false);
            switch (random.nextInt(8)) {
                case 0 -> {
                    if (context.canTakeBack()) {
                        context.takeBack();
                    }
                }
                case 1 -> context.flush();
                default -> {}
            }
        }
    }

    private static void goOnAlike(Random random, int n, CompressedContext one, List<CompressedContext> others) {
        goOnAlike(random, n, one, others, 0);
    }

    /** @param rounding that logits may differ by; 0: all bits are the same */
    private static void goOnAlike(
            Random random, int n, CompressedContext one, List<CompressedContext> others, float rounding) {
        for (int read = 0; read < n; ) {
            int[] tokens = tokens(random, random.nextInt(3) > 0 ? 1 : 1 + random.nextInt(BLOCK));
            float[] expected = next(one, tokens);
            for (CompressedContext other : others) {
                assertArrayEquals(expected, next(other, tokens), rounding, read + " tokens after it was restored");
                assertEquals(one.used(), other.used());
            }
            read += tokens.length;
            if (random.nextInt(20) == 0 && one.canTakeBack()) {
                int taken = one.takeBack();
                others.forEach(other -> assertEquals(taken, other.takeBack()));
            }
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
    void goesOnByTheBit(int seed) throws IOException {
        Random random = new Random(seed);
        FlashAttention flash = seed % 2 == 0 ? FlashAttention.OFF : FlashAttention.ON;
        int window = seed > 5 ? TIGHT : WINDOW;
        CacheOptions options = options(
                window + List.of(0, 16, 250).get(seed % 3),
                flash,
                seed % 4 == 1 ? CellType.Q8_0 : seed % 4 == 2 ? CellType.F32 : CellType.F16,
                seed % 5 == 0 ? BLOCK / 2 : BLOCK);
        try (Model model = load(seed % 3 == 0 ? "gemma2" : "gemma3", window);
                CompressedContext saved = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext fresh = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext used = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext forked = new CompressedContext(model, new EntropyMerged(), options)) {
            int exact = 0;
            for (int length : new int[] {1, BLOCK + 5, WINDOW, 3 * WINDOW, 250, 700}) {
                saved.clear();
                read(saved, random, length);
                read(used, random, 1 + random.nextInt(300));
                byte[] state = state(saved);
                assertArrayEquals(state, state(saved), "saving changes nothing");
                for (CompressedContext other : List.of(fresh, used)) {
                    restore(other, state);
                }
                saved.forkInto(forked);
                if (hasHoles(model, state)) {
                    float rounding = flash == FlashAttention.ON ? .1f : .02f; // as SlidingWindowTest has it
                    goOnAlike(random, BLOCK, saved, List.of(fresh, used, forked), rounding);
                    continue;
                }
                exact++;
                goOnAlike(random, 150, saved, List.of(fresh, used, forked));
                for (int layer = 0; layer < model.shape().layers(); layer++) {
                    assertArrayEquals(saved.fates(layer, 0), fresh.fates(layer, 0));
                }
                byte[] later = state(saved); // what was restored can be saved again, and what was saved restored
                restore(used, state(fresh));
                restore(saved, later);
                if (!hasHoles(model, later)) {
                    goOnAlike(random, 40, saved, List.of(fresh, used));
                }
            }
            assertTrue(exact >= 5, exact + " of 6 without holes");
        }
    }

    /** Where a state has the cells of its windows, which lie before the table's columns and the state of llama.cpp. */
    private record Windows(ByteBuffer in, int first, int cells) {
        static Windows of(Model model, byte[] state) {
            ByteBuffer in = ByteBuffer.wrap(state).order(ByteOrder.LITTLE_ENDIAN);
            int cells = in.getInt(12);
            int used = in.getInt(136);
            int pairs = model.shape().layers() * model.shape().kvHeads();
            int end = state.length - (int) in.getLong(152) - pairs * 8 * 4 * used;
            return new Windows(in, end - 4 - 4 * cells, cells);
        }

        int head() {
            return first + 4 * cells;
        }
    }

    /** Whether cells are free before the one where llama.cpp goes on, which a restored state cannot have. */
    private static boolean hasHoles(Model model, byte[] state) {
        Windows windows = Windows.of(model, state);
        int head = windows.in.getInt(windows.head());
        for (int cell = 0; cell < head; cell++) {
            if (windows.in.getInt(windows.first + 4 * cell) < 0) {
                return true;
            }
        }
        return false;
    }

    /** Wherever the windows were in their ring. */
    @ParameterizedTest
    @ValueSource(ints = {WINDOW, TIGHT})
    void whatIsTakenBackLeavesTheWindowsWhole(int window) throws IOException {
        Random random = new Random(8);
        CacheOptions options = options(window, FlashAttention.OFF, CellType.F32, BLOCK);
        int taken = 0;
        int refused = 0;
        try (Model model = load("gemma3", window);
                CompressedContext asked = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext never = new CompressedContext(model, new EntropyMerged(), options)) {
            for (int round = 0; round < 150; round++) {
                int[] text = tokens(random, 1 + random.nextInt(BLOCK));
                for (CompressedContext context : List.of(asked, never)) {
                    context.flush();
                    context.decode(text, false);
                    context.flush();
                }
                byte[] before = state(asked);
                for (int token : tokens(random, 1 + random.nextInt(BLOCK - 1))) {
                    asked.decode(new int[] {token}, false); // each may go to the cell that a window has just let go of
                }
                if (asked.canTakeBack()) {
                    taken += asked.takeBack();
                } else {
                    String why = assertThrows(KvmergeException.Usage.class, asked::takeBack)
                            .getMessage();
                    assertTrue(why.contains("Save the state before"), why);
                    restore(asked, before);
                    refused++;
                }
                int[] next = tokens(random, 1);
                assertArrayEquals(next(never, next), next(asked, next), 1e-3f, "after " + never.position() + " tokens");
            }
        }
        assertTrue(taken > 500 && refused > 10, taken + " tokens, and " + refused + " times they could not be");
    }

    /** Of several sequences, each has windows of its own, and what befalls one leaves the others. */
    @Test
    void sequencesOfAGroupTakeEachOthersStates() throws IOException {
        Random random = new Random(9);
        CacheOptions options = options(64, FlashAttention.ON, CellType.F16, BLOCK);
        try (Model model = load("gemma3", WINDOW);
                SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options, 3);
                SequenceGroup undisturbed = new SequenceGroup(model, new EntropyMerged(), options, 3);
                CompressedContext alone = new CompressedContext(model, new EntropyMerged(), options)) {
            for (int i = 0; i < 3; i++) {
                read(group.sequence(i), new Random(i), 100 + 150 * i);
                read(undisturbed.sequence(i), new Random(i), 100 + 150 * i);
            }
            restore(alone, state(group.sequence(2)));
            state(undisturbed.sequence(2)); // which ends a block
            group.sequence(2).forkInto(group.sequence(0));
            goOnAlike(random, 120, undisturbed.sequence(2), List.of(alone, group.sequence(0), group.sequence(2)));
            goOnAlike(random, 120, undisturbed.sequence(1), List.of(group.sequence(1)));
        }
    }

    @Test
    void whatIsNoStateOfItIsRefusedAndChangesNothing() throws IOException {
        Random random = new Random(4);
        CacheOptions options = options(64, FlashAttention.ON, CellType.F16, BLOCK);
        CacheOptions ofFew = options(300, FlashAttention.ON, CellType.F16, BLOCK);
        CacheOptions ofMany =
                CacheOptions.of(300, 250).with(ofFew.compute().withUbatch(250)).withFates();
        try (Model model = load("gemma3", WINDOW);
                CompressedContext saved = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext context = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext never = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext few = new CompressedContext(model, new EntropyMerged(), ofFew);
                CompressedContext many = new CompressedContext(model, new EntropyMerged(), ofMany)) {
            read(saved, random, 400);
            byte[] state = state(saved);
            read(context, new Random(1), 90);
            read(never, new Random(1), 90);
            for (int i = 0; i < 100; i++) {
                byte[] damaged = state.clone();
                damaged[32 + random.nextInt(state.length - 32)] ^= (byte) (1 << random.nextInt(8));
                refused(context, damaged, "damaged");
            }
            assertThrows(IOException.class, () -> restore(context, Arrays.copyOf(state, state.length - 1)));
            assertThrows(KvmergeException.class, () -> context.restore(Arrays.copyOf(state, state.length - 1)));
            Windows at = Windows.of(model, state);
            ByteBuffer in = at.in;
            int cells = at.cells;
            int windows = at.first;
            int head = at.head();
            assertEquals(256, cells);
            refused(context, with(state, 12, 0), "another kind of cache");
            refused(context, with(state, 12, cells + 1), "another kind of cache");
            refused(context, with(state, head, cells + 1), "contradicts itself");
            refused(context, with(state, head, -1), "contradicts itself");
            refused(context, with(state, windows, 400), "contradicts itself");
            refused(context, with(state, windows, -2), "contradicts itself");
            int first = windows; // of the cells that a window sees
            while (in.getInt(first) < 390) {
                first += 4;
            }
            refused(context, with(state, first, -1), "other windows than its table");
            refused(context, with(with(state, first, in.getInt(first + 4)), first + 4, in.getInt(first)), "positions");
            read(few, random, 20);
            read(many, random, 20);
            refused(many, state(few), "windows have 256 cells, this one");
            goOnAlike(random, 100, never, List.of(context));
            restore(context, state);
            goOnAlike(random, 100, saved, List.of(context));
        }
    }

    /** A state with other bytes at a place, and the sum that goes with it. */
    private static byte[] with(byte[] state, int at, int value) {
        byte[] other = state.clone();
        ByteBuffer out = ByteBuffer.wrap(other).order(ByteOrder.LITTLE_ENDIAN).putInt(at, value);
        long sum = 0x14650FB0739D0383L;
        for (int i = 32; i < other.length; i += 8) {
            long word = 0;
            for (int j = Math.min(8, other.length - i); j-- > 0; ) {
                word = word << 8 | other[i + j] & 0xff;
            }
            sum = (sum ^ word) * 1099511628211L;
            sum ^= sum >>> 29;
        }
        out.putLong(24, sum);
        return other;
    }

    private static void refused(CompressedContext context, byte[] state, String why) {
        String message = assertThrows(KvmergeException.class, () -> restore(context, state))
                .getMessage();
        assertTrue(message.contains(why), message);
    }
}
