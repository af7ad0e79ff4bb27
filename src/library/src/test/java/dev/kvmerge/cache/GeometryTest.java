package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.Full;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** The shapes and rotations of the models that users bring, on tiny ones with random weights. */
@Tag("native")
class GeometryTest {
    @TempDir
    Path folder;

    /** 16 dimensions of a key stay, 8 are rotated. */
    static final Geometry PLM = new Geometry("plm", 4, 4, 24, 10000, "none", 8, false);

    static Stream<Geometry> geometries() {
        return Stream.of(
                new Geometry("llama", 4, 4, 32, 10000, "none", 32, false), // Llama 2: as many KV heads as heads
                new Geometry("llama", 8, 2, 32, 500000, "none", 32, true), // Llama 3.1: four to one, frequency factors
                new Geometry("llama", 8, 2, 64, 1000000, "none", 64, false), // Mistral
                new Geometry(
                        "llama", 4, 2, 40, 10000, "none", 40, false), // a head that is no power of two, all rotated
                new Geometry("llama", 4, 2, 32, 10000, "linear", 32, false),
                new Geometry("llama", 4, 2, 32, 10000, "yarn", 32, false),
                new Geometry("llama", 4, 2, 32, 10000, "longrope", 32, false), // Phi-3's two sets of factors
                PLM,
                new Geometry("qwen2", 4, 2, 16, 1000000, "none", 16, false), // halves are rotated, not neighbours
                new Geometry("qwen2", 2, 1, 32, 10000, "yarn", 32, false));
    }

    /**
     * In the first layer a key is a function of its token alone, but for the rotation: the same token elsewhere has the
     * rotated key.
     */
    @ParameterizedTest
    @MethodSource("geometries")
    void aKeyRotatedToAnotherPositionIsTheKeyOfTheSameTokenThere(Geometry g) {
        int early = 3;
        int late = 23;
        try (Model model =
                Model.load(TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0)) {
            assertEquals(g.heads(), model.shape().heads());
            assertEquals(g.kvHeads(), model.shape().kvHeads());
            CacheOptions options = CacheOptions.unlimited(32, 32)
                    .with(ComputeSettings.usual().withThreads(1).withCellTypes(CellType.F32, CellType.F32));
            try (CompressedContext context = new CompressedContext(model, new Full(), options)) {
                int[] tokens = new Random(2).ints(32, 0, TinyGguf.VOCABULARY).toArray();
                tokens[late] = tokens[early];
                context.decode(tokens);
                context.flush();
                float[] there = keys(context, late);
                assertTrue(distance(keys(context, early), there) > 1e-3, "the rotation is seen");
                int cells = context.context().cells();
                int pairs = model.shape().pairs();
                int[] targets = new int[pairs * cells];
                int[] positions = new int[targets.length];
                int[] destinations = new int[targets.length];
                int[] moved = new int[targets.length];
                float[] weights = new float[targets.length];
                java.util.Arrays.fill(targets, Plan.EVICTED);
                for (int pair = 0; pair < pairs; pair++) {
                    for (int c = 0; c < 32; c++) {
                        int at = pair * cells + c;
                        targets[at] = destinations[at] = positions[at] = moved[at] = c;
                        weights[at] = 1;
                    }
                    moved[pair * cells + early] = late;
                }
                context.observer().apply(targets, weights, null, positions, destinations, moved, true);
                assertArrayEquals(there, keys(context, early), 2e-5f);
            }
        }
    }

    /** In the first layer a key depends on its token and position alone: turned back, it depends on its token alone. */
    @ParameterizedTest
    @MethodSource("geometries")
    void keysAreTurnedBackToBeforeTheirRotation(Geometry g) {
        try (Model model = Model.load(
                        TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0);
                CompressedContext context = new CompressedContext(
                        model,
                        new Full(),
                        CacheOptions.unlimited(32, 32)
                                .with(ComputeSettings.usual()
                                        .withThreads(1)
                                        .withCellTypes(CellType.F32, CellType.F32)))) {
            int[] tokens = new Random(5).ints(32, 0, TinyGguf.VOCABULARY).toArray();
            tokens[29] = tokens[3];
            context.decode(tokens);
            float[] cached = keys(context, 3);
            assertTrue(distance(cached, keys(context, 29)) > 0.1, "the rotation shows");
            for (int h = 0; h < model.shape().kvHeads(); h++) {
                float[] keys = context.unrotated(0, h).keys();
                int dim = keys.length / 32;
                assertArrayEquals(
                        java.util.Arrays.copyOfRange(keys, 3 * dim, 4 * dim),
                        java.util.Arrays.copyOfRange(keys, 29 * dim, 30 * dim),
                        2e-5f);
            }
        }
    }

    private static float[] keys(CompressedContext context, int cell) {
        int heads = context.context().model().shape().kvHeads();
        int dim = context.info().keyDimension();
        float[] all = new float[heads * dim];
        for (int h = 0; h < heads; h++) {
            float[] keys = context.observer()
                    .readCells(0, h, new int[] {cell}, context.info(), new CellVectors.Buffer())
                    .keys();
            System.arraycopy(keys, 0, all, h * dim, dim);
        }
        return all;
    }

    private static double distance(float[] a, float[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; i++) {
            sum += Math.abs(a[i] - b[i]);
        }
        return sum;
    }

    @ParameterizedTest
    @MethodSource("geometries")
    void everyShapeIsCompressed(Geometry g) {
        try (Model model =
                Model.load(TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0)) {
            for (FlashAttention flash : g == PLM ? List.of(FlashAttention.OFF) : List.of(FlashAttention.values())) {
                CacheOptions options = CacheOptions.of(48, 32)
                        .with(ComputeSettings.usual().withThreads(1).withFlashAttention(flash));
                try (CompressedContext context = new CompressedContext(model, new EntropyMerged(), options)) {
                    Random random = new Random(3);
                    for (int block = 0; block < 6; block++) {
                        context.decode(random.ints(32, 0, TinyGguf.VOCABULARY).toArray());
                    }
                    assertEquals(48, context.used());
                    assertTrue(Float.isFinite(context.logits().get(ValueLayout.JAVA_FLOAT, 0)));
                }
            }
        }
    }
}
