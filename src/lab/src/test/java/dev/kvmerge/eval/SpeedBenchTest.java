package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.StreamingLlm;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What a bench runs beside the runs that it times: the turn that warms up. */
@Tag("native")
class SpeedBenchTest {
    private static final int BLOCK = 16;

    @TempDir
    Path folder;

    private List<SpeedBench.Row> rows(Geometry geometry, int prompt, double compression) {
        return rows(geometry, prompt, new Cache("streaming-llm", new StreamingLlm(4), compression));
    }

    private List<SpeedBench.Row> rows(Geometry geometry, int prompt, Cache cache) {
        Path file = TinyGguf.write(folder.resolve("tiny.gguf"), geometry);
        List<Cache> caches = List.of(new Cache("llama.cpp", new Full(), 0), cache);
        int[] tokens = new Random(1).ints(prompt, 0, TinyGguf.VOCABULARY).toArray();
        List<FlashAttention> off = List.of(FlashAttention.OFF);
        ComputeSettings compute = ComputeSettings.usual().withThreads(1);
        SpeedBench.Setup setup =
                new SpeedBench.Setup(new int[] {prompt}, 0, 1, BLOCK, BLOCK, compute, Clock.CPU, off, off);
        try (Model model = Model.load(TestModel.library(), file, Backend.CPU, 0)) {
            return new SpeedBench(model, setup, caches, tokens).run(what -> {}, () -> false);
        }
    }

    /** The turn that warms up reads less text, and its share of that holds no window. */
    @Test
    void aModelWithSlidingWindowsIsTimed() {
        List<SpeedBench.Row> rows = rows(new Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, 48, 2), 208, 0.5);
        assertEquals(104, rows.get(1).cells());
        assertTrue(rows.get(1).overhead() > 0, "its planner ran");
    }

    /** Its share of that holds no sinks either. */
    @Test
    void aHighCompressionOfALongPromptIsTimed() {
        List<SpeedBench.Row> rows = rows(new Geometry("llama", 4, 2, 16, 10000, "none", 16, false), 1024, 0.97);
        assertEquals(31, rows.get(1).cells());
        assertTrue(rows.get(1).overhead() > 0, "its planner ran");
    }

    /** As many cells for every length: what does not grow with the text. */
    @Test
    void cellsCanBeGivenInPlaceOfAShare() {
        for (int prompt : new int[] {128, 256}) {
            List<SpeedBench.Row> rows = rows(
                    new Geometry("llama", 4, 2, 16, 10000, "none", 16, false),
                    prompt,
                    Cache.ofCells("llama.cpp", List.of("streaming-llm"), List.of(64), Strategies.Settings.DEFAULT)
                            .getLast());
            assertEquals(64, rows.get(1).cells());
            assertEquals(1 - 64.0 / prompt, rows.get(1).compression(), 1e-12);
        }
    }
}
