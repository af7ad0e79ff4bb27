package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.StreamingLlm;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Positions that are numbered anew, on models with every rotation. */
@Tag("native")
class PositionRangeTest {
    private static final int CELLS = 48;
    private static final int BLOCK = 16;

    @TempDir
    Path folder;

    /**
     * Attention with RoPE depends on distances alone: a window of the newest cells sees the same, wherever it starts.
     */
    @ParameterizedTest
    @MethodSource("dev.kvmerge.cache.GeometryTest#geometries")
    void aPositionRangeChangesNothingForTheNewestCells(Geometry g) {
        int[] tokens = new Random(7).ints(20 * BLOCK, 0, TinyGguf.VOCABULARY).toArray();
        try (Model model =
                Model.load(TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0)) {
            CacheOptions growing = CacheOptions.of(CELLS, BLOCK)
                    .with(ComputeSettings.usual().withThreads(1).withCellTypes(CellType.F32, CellType.F32));
            float[] expected = read(model, tokens, growing, tokens.length);
            // A range of the cells alone, one that the text passes in mid-block, one that it reaches at a block's end.
            for (int range : new int[] {CELLS, CELLS + 27, CELLS + 2 * BLOCK}) {
                float[] found = read(model, tokens, growing.withPositionRange(range), range);
                assertArrayEquals(expected, found, 1e-3f, "range " + range);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({
        "32768, 2048, 512, 16384",
        "8192, 1024, 128, 4096",
        "8192, 7000, 128, 7000", // the cells are held
        "8191, 100, 128, 4095",
        "600, 64, 512, 88", // the other half is no room for a block
        "600, 200, 512, 200",
        "128, 64, 512, 64",
    })
    void aModelsRangeIsHalfOfItsPositions(int trained, int cells, int room, int expected) {
        assertEquals(expected, CacheOptions.positionRange(trained, cells, room));
    }

    /** Logits after the last block, in which the positions are as many as told. */
    private static float[] read(Model model, int[] tokens, CacheOptions options, int positions) {
        try (CompressedContext context = new CompressedContext(model, new StreamingLlm(0), options)) {
            for (int at = 0; at < tokens.length; at += BLOCK) {
                context.decode(Arrays.copyOfRange(tokens, at, at + BLOCK));
            }
            assertEquals(positions - 1, context.context().newestPosition());
            assertEquals(CELLS, context.used());
            return context.logits().toArray(ValueLayout.JAVA_FLOAT);
        }
    }
}
