package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.attention.Calibrations;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.H2o;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.ValueLayout;
import java.nio.channels.Channels;
import java.util.Arrays;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** A state that is saved, restored and forked goes on by the bit. */
@Tag("model")
class StateTest {
    private static final int BLOCK = 32;

    private final Model model = TestModel.model();

    private static Stream<CacheOptions> kinds() {
        ComputeSettings one = ComputeSettings.usual().withThreads(1);
        return Stream.of(
                CacheOptions.of(96, BLOCK).with(one),
                CacheOptions.of(96, BLOCK).with(one.withFlashAttention(FlashAttention.ON)),
                CacheOptions.of(96, BLOCK)
                        .with(one.withFlashAttention(FlashAttention.ON).withCellTypes(CellType.Q8_0, CellType.Q8_0))
                        .withFates(),
                CacheOptions.of(96, BLOCK)
                        .with(one.withFlashAttention(FlashAttention.ON).withCellTypes(CellType.Q5_1, CellType.Q4_0)),
                CacheOptions.of(96, BLOCK).with(one).withPositionRange(120));
    }

    private static byte[] state(CompressedContext context) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        context.saveState(Channels.newChannel(bytes));
        return bytes.toByteArray();
    }

    private static void restore(CompressedContext context, byte[] state) throws IOException {
        context.restoreState(Channels.newChannel(new ByteArrayInputStream(state)));
    }

    private static float[] next(CompressedContext context, int token) {
        context.decode(new int[] {token}, false);
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    private static void read(CompressedContext context, int[] tokens) {
        for (int at = 0; at < tokens.length; at += 20) {
            context.decode(Arrays.copyOfRange(tokens, at, Math.min(tokens.length, at + 20)), false);
        }
    }

    @ParameterizedTest
    @MethodSource("kinds")
    void goesOnByTheBit(CacheOptions options) throws IOException {
        int[] tokens = TestModel.book(0, 300);
        EntropyMerged planner = new EntropyMerged(Calibrations.of(model.path()));
        try (CompressedContext saved = new CompressedContext(model, planner, options);
                CompressedContext restored = new CompressedContext(model, planner, options);
                CompressedContext forked = new CompressedContext(model, planner, options)) {
            for (int at : new int[] {20, 128, 203}) {
                saved.clear();
                read(saved, Arrays.copyOf(tokens, at));
                byte[] state = state(saved);
                InputStream more = new ByteArrayInputStream(Arrays.copyOf(state, state.length + 7));
                restored.restoreState(Channels.newChannel(more));
                assertEquals(7, more.available(), "it reads no more than the state");
                saved.forkInto(forked);
                assertEquals(at, restored.position());
                assertEquals(saved.used(), restored.used());
                assertThrows(IllegalStateException.class, restored::logits, "there are none yet");
                for (int i = 0; i < BLOCK + 8; i++) {
                    float[] expected = next(saved, tokens[at + i]);
                    assertArrayEquals(expected, next(restored, tokens[at + i]), "token " + i + " after " + at);
                    assertArrayEquals(expected, next(forked, tokens[at + i]), "token " + i + " after " + at);
                }
                assertArrayEquals(state(saved), state(forked));
                if (options.fates()) {
                    assertArrayEquals(saved.fates(7, 1), restored.fates(7, 1));
                }
            }
        }
    }

    @Test
    void refusesWhatItCannotTakeOverAndGoesOn() throws IOException {
        int[] tokens = TestModel.book(0, 300);
        CacheOptions options = kinds().findFirst().orElseThrow();
        try (CompressedContext context = new CompressedContext(model, new H2o(0.5), options);
                CompressedContext never = new CompressedContext(model, new H2o(0.5), options);
                CompressedContext other = new CompressedContext(
                        model, new H2o(0.5), CacheOptions.of(97, BLOCK).with(options.compute()));
                CompressedContext full = new CompressedContext(
                        model, new Full(), CacheOptions.unlimited(200, BLOCK).with(options.compute()))) {
            assertThrows(KvmergeException.class, () -> state(context), "nothing decoded");
            read(context, Arrays.copyOf(tokens, 150));
            read(never, Arrays.copyOf(tokens, 150));
            byte[] state = state(context);
            assertArrayEquals(state, state(never));
            read(other, Arrays.copyOf(tokens, 40));
            read(full, Arrays.copyOf(tokens, 40));
            byte[] foreign = state(other);
            byte[] whole = state(full);
            restore(full, whole);
            assertThrows(EOFException.class, () -> restore(context, new byte[5]));
            assertThrows(EOFException.class, () -> restore(context, Arrays.copyOf(state, state.length - 1)));
            byte[] damaged = state.clone();
            damaged[state.length / 2] ^= 4;
            byte[] huge = state.clone();
            Arrays.fill(huge, 16, 23, (byte) 0x7f);
            refused(() -> restore(context, damaged), "is damaged");
            refused(() -> restore(context, huge), "more than there is memory for");
            refused(() -> restore(context, new byte[100]), "are no state");
            refused(() -> restore(context, foreign), "cells that stay: 97, this one 96");
            refused(() -> restore(context, whole), "another kind of cache");
            for (int i = 150; i < 200; i++) {
                assertArrayEquals(next(never, tokens[i]), next(context, tokens[i]));
            }
        }
    }

    private interface Restoring {
        void run() throws IOException;
    }

    private static void refused(Restoring what, String why) {
        String message = assertThrows(KvmergeException.class, what::run).getMessage();
        assertTrue(message.contains(why), message);
    }
}
