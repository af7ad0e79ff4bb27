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
import dev.kvmerge.llama.CellMemory;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.StreamingLlm;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * A model in which every second layer has a sliding window, as Gemma's: the others are compressed, and those with
 * windows left alone.
 */
@Tag("native")
class SlidingWindowTest {
    private static final int WINDOW = 48;
    private static final int BLOCK = 32;
    private static final Geometry GEMMA = gemma(2);

    @TempDir
    Path folder;

    private static Geometry gemma(int pattern) {
        return new Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, WINDOW, pattern);
    }

    private Model load(Geometry g, String... zero) {
        Path file = TinyGguf.write(folder.resolve("tiny.gguf"), g, Set.of(zero));
        return Model.load(TestModel.library(), file, Backend.CPU, 0);
    }

    /** Against what the native library finds in llama.cpp's own tensors. */
    @ParameterizedTest
    @CsvSource({"300,32,512,f16", "300,256,512,q8_0/q5_1", "300,256,32,q8_0", "600,600,200,f16", "600,600,208,f16"})
    void windowsTakeWhatLlamaCppAllocates(int cells, int block, int ubatch, String text) {
        CellTypes types = CellTypes.parse(text);
        ComputeSettings settings =
                ComputeSettings.usual().withThreads(1).withCells(types).withUbatch(ubatch);
        CacheOptions options = CacheOptions.unlimited(cells, block).with(settings);
        try (Model model = load(GEMMA);
                CompressedContext context = new CompressedContext(model, new Full(), options)) {
            context.decode(new int[] {1, 2, 3});
            assertEquals(
                    options.allocated() * CellMemory.ofCell(model, types)
                            + CellMemory.ofWindows(model, types, block, settings),
                    context.info().bytes());
        }
    }

    @Test
    void theShapeIsThatOfTheLayersWithoutWindows() {
        try (Model model = load(GEMMA)) {
            assertEquals(List.of(1), model.shape().layerNumbers());
            assertEquals(WINDOW, model.slidingWindow());
        }
        KvmergeException e = assertThrows(KvmergeException.class, () -> load(gemma(0)));
        assertTrue(e.getMessage().contains("every layer") && e.getMessage().contains("48"), e.getMessage());
    }

    /** Logits after the last block. */
    private static float[] read(Model model, int[] tokens, CompressedContext context) {
        try (context) {
            for (int at = 0; at < tokens.length; at += BLOCK) {
                context.decode(Arrays.copyOfRange(tokens, at, at + BLOCK));
            }
            return context.logits().toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    /**
     * Where the layers without windows have no say, their compression must not show: all that shows is damage to the
     * others.
     */
    @ParameterizedTest
    @EnumSource(names = {"ON", "OFF"})
    void theWindowsStayWhole(FlashAttention flash) {
        int[] tokens = new Random(3).ints(12 * BLOCK, 0, TinyGguf.VOCABULARY).toArray();
        CacheOptions full = CacheOptions.unlimited(tokens.length, BLOCK)
                .with(ComputeSettings.usual().withFlashAttention(flash).withCellTypes(CellType.F32, CellType.F32));
        float rounding =
                flash == FlashAttention.ON ? 0.1f : 0.02f; // of other orders of sums, which grows through random layers
        CacheOptions few = CacheOptions.of(WINDOW, BLOCK).with(full.compute());
        for (Planner planner : List.of(new StreamingLlm(4), new EntropyMerged())) {
            try (Model model = load(GEMMA, "blk.1.attn_output.weight")) {
                assertArrayEquals(
                        read(model, tokens, new CompressedContext(model, new Full(), full)),
                        read(model, tokens, new CompressedContext(model, planner, few)),
                        rounding);
            }
            try (Model model = load(GEMMA)) { // and where they have, it does
                float[] whole = read(model, tokens, new CompressedContext(model, new Full(), full));
                float[] less = read(model, tokens, new CompressedContext(model, planner, few));
                double most = 0;
                for (int i = 0; i < whole.length; i++) {
                    most = Math.max(most, Math.abs(whole[i] - less[i]));
                }

                assertTrue(most > 0.5, "the difference shows: " + most);
            }
        }
    }

    @Test
    void whatLlamaCppCannotDoIsRefused() {
        try (Model model = load(GEMMA)) {
            CacheOptions tooFew = CacheOptions.of(WINDOW - 1, BLOCK);
            KvmergeException e = assertThrows(
                    KvmergeException.Usage.class, () -> new CompressedContext(model, new StreamingLlm(4), tooFew));
            assertTrue(e.getMessage().contains("48 positions, and 47 cells"), e.getMessage());
            CacheOptions spans = CacheOptions.of(64, BLOCK).withPositionRange(128);
            assertThrows(KvmergeException.Usage.class, () -> new CompressedContext(model, new StreamingLlm(4), spans));
        }
    }
}
