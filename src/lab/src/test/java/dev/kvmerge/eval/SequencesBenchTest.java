package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.Full;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Timing several sequences at once. How fast they are is not asked here. */
@Tag("native")
class SequencesBenchTest {
    @TempDir
    private Path folder;

    @Test
    void rows() {
        Geometry tiny = new Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        Path file = TinyGguf.write(folder.resolve("tiny.gguf"), tiny);
        List<Cache> caches =
                List.of(new Cache("llama.cpp", new Full(), 0), new Cache("entropy-merged", new EntropyMerged(), 0.5));
        int[] tokens = new Random(1).ints(200, 0, TinyGguf.VOCABULARY).toArray();
        SequencesBench.Setup setup = new SequencesBench.Setup(
                new int[] {128},
                20,
                2,
                16,
                48,
                ComputeSettings.usual().withThreads(1).withFlashAttention(FlashAttention.ON),
                Clock.WALL,
                new int[] {1, 3});
        try (Model model = Model.load(TestModel.library(), file, Backend.CPU, 0)) {
            SequencesBench bench = new SequencesBench(model, setup, caches, tokens);
            List<SpeedBench.Row> rows = bench.run(what -> {}, () -> false);
            assertEquals(
                    List.of("tg20 x 1 @ 128", "tg20 x 3 @ 128", "tg20 x 1 @ 128", "tg20 x 3 @ 128"),
                    rows.stream().map(SpeedBench.Row::test).toList());
            assertEquals(1, rows.get(0).speed(), "one beside itself");
            assertEquals(1, rows.get(2).speed());
            assertNull(rows.get(1).overhead());
            assertTrue(rows.get(3).overhead() > 0, "twenty tokens are a block and some, of each");
            assertEquals(64, rows.get(3).cells());
            rows.forEach(row -> assertEquals(2, row.samples().length));
            assertThrows(Experiment.Cancelled.class, () -> bench.run(what -> {}, () -> true));
        }
    }
}
