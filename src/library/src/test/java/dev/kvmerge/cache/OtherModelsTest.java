package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.StreamingLlm;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Models that are unlike the others: what llama.cpp would make two models of, and what is refused by name. */
@Tag("native")
class OtherModelsTest {
    private static final int BLOCK = 32;

    @TempDir
    Path folder;

    private Model load(Geometry g) {
        return Model.load(TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0);
    }

    private static int[] tokens() {
        return new Random(4).ints(BLOCK, 0, TinyGguf.VOCABULARY).toArray();
    }

    private static CacheOptions precise(CacheOptions options) {
        return options.with(ComputeSettings.usual().withThreads(1).withCellTypes(CellType.F32, CellType.F32));
    }

    /** llama.cpp would take the short factors in the first context and the long ones in the second. */
    @Test
    void longRopeIsTheSameModelInAContextOfAnySize() {
        try (Model model = load(new Geometry("llama", 4, 2, 32, 10000, "longrope", 32, false));
                CompressedContext few =
                        new CompressedContext(model, new StreamingLlm(4), precise(CacheOptions.of(64, BLOCK)));
                CompressedContext many =
                        new CompressedContext(model, new Full(), precise(CacheOptions.unlimited(512, BLOCK)))) {
            assertEquals(256, few.context().cells());
            assertEquals(512, many.context().cells());
            few.decode(tokens());
            many.decode(tokens());
            assertArrayEquals(
                    many.logits().toArray(ValueLayout.JAVA_FLOAT), few.logits().toArray(ValueLayout.JAVA_FLOAT), 1e-5f);
        }
    }

    @Test
    void layersThatDifferAreRefusedWhenTheModelIsLoaded() {
        for (int kvHeads : new int[] {1, 2}) {
            Geometry g = new Geometry("deci", 4, kvHeads, 32, 10000, "none", 32, false);
            KvmergeException e = assertThrows(KvmergeException.class, () -> load(g));
            assertTrue(e.getMessage().contains("layers of different shapes"), e.getMessage());
        }
    }

    @Test
    void partlyRotatedKeysWhosePairsLieApartAreRefused() {
        try (Model model = load(new Geometry("minicpm3", 4, 4, 24, 10000, "none", 8, false))) {
            assertRefused(
                    model,
                    new StreamingLlm(4),
                    CacheOptions.of(48, BLOCK).with(ComputeSettings.usual().withThreads(1)),
                    "layer 0: keys of an unrotated part of 16 dimensions and a rotated one in NEOX order");
        }
    }

    @Test
    void anExactBiasBeforeASoftCapIsRefused() {
        try (Model model = load(new Geometry("gemma2", 4, 1, 32, 10000, "none", 32, false, 40, 2))) {
            CacheOptions options =
                    CacheOptions.of(48, BLOCK).with(ComputeSettings.usual().withThreads(1));
            assertRefused(
                    model,
                    new EntropyMerged(4, 0.25, 8, 0.9, 1.5, 1.5, Bias.EXACT, null),
                    options,
                    "an exact bias would be added before the scores' soft cap");
            try (CompressedContext folded = new CompressedContext(model, new EntropyMerged(), options)) {
                for (int block = 0; block < 4; block++) {
                    folded.decode(tokens());
                }
                assertTrue(Float.isFinite(folded.logits().get(ValueLayout.JAVA_FLOAT, 0)));
            }
        }
    }

    /** llama.cpp v0.5.0 aborts. */
    @Test
    void flashAttentionOfPlmIsRefused() {
        try (Model model = load(GeometryTest.PLM)) {
            for (FlashAttention flash : List.of(FlashAttention.ON, FlashAttention.AUTO)) {
                CacheOptions options =
                        CacheOptions.of(48, BLOCK).with(ComputeSettings.usual().withFlashAttention(flash));
                KvmergeException e = assertThrows(
                        KvmergeException.Usage.class, () -> new CompressedContext(model, new StreamingLlm(4), options));
                assertTrue(e.getMessage().contains("use -fa off"), e.getMessage());
            }
        }
    }

    private static void assertRefused(Model model, Planner planner, CacheOptions options, String why) {
        try (CompressedContext context = new CompressedContext(model, planner, options)) {
            KvmergeException e = assertThrows(KvmergeException.class, () -> {
                context.decode(tokens());
                context.flush();
            });
            assertTrue(e.getMessage().contains(why), e.getMessage());
        }
    }

    @Test
    void anEncoderIsRefusedWhenItIsLoaded() {
        Path file = TinyGguf.writeEncoder(
                folder.resolve("encoder.gguf"), new Geometry("llama", 4, 2, 32, 10000, "none", 32, false));
        KvmergeException e =
                assertThrows(KvmergeException.class, () -> Model.load(TestModel.library(), file, Backend.CPU, 0));
        assertTrue(e.getMessage().contains("whose tokens attend to those to come"), e.getMessage());
    }
}
