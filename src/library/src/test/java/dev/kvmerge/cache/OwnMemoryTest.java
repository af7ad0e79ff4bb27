package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.KeyNorm;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.nio.file.Path;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What kvmerge keeps in memory beside the cells. */
@Tag("native")
class OwnMemoryTest {
    private static final int HEADS = 4;
    private static final int KV_HEADS = 2;
    private static final int DIM = 32;
    private static final int CELLS = 400;
    private static final int BLOCK = 100;
    private static final int ALLOCATED = 512;
    private static final int LAYERS = 2;

    @TempDir
    Path folder;

    private Model model() {
        Path file = TinyGguf.write(
                folder.resolve("tiny.gguf"), new Geometry("llama", HEADS, KV_HEADS, DIM, 10000, "none", DIM, false));
        return Model.load(TestModel.library(), file, Backend.CPU, 0);
    }

    private static CacheOptions options(FlashAttention flash, Observation observation) {
        ComputeSettings compute =
                ComputeSettings.usual().withThreads(1).withFlashAttention(flash).withObservation(observation);
        return CacheOptions.of(CELLS, BLOCK).with(compute);
    }

    private static void read(CompressedContext context, int n) {
        for (int block = 0; block < 6; block++) {
            int[] tokens = new int[n];
            for (int i = 0; i < n; i++) {
                tokens[i] = (block * 31 + i * 7) % 90;
            }
            context.decode(tokens, false);
        }
        context.decode(new int[] {1}); // whose query waits for others
        context.account();
    }

    private long bytes(Strategy strategy, CacheOptions options) {
        try (Model model = model();
                CompressedContext context = new CompressedContext(model, strategy, options)) {
            read(context, options.promptBlock());
            return context.tableBytes();
        }
    }

    private static Strategy ours() {
        return Strategies.create("entropy-merged", Strategies.Settings.DEFAULT);
    }

    /** Refusing a context for want of memory goes by what is foreseen, which has to be what is kept. */
    @ParameterizedTest
    @CsvSource({
        "OFF, CAPTURE, 0, false, 1",
        "ON, CAPTURE, 0, false, 1",
        "ON, STOP, 0, false, 1",
        "ON, CAPTURE, 500, true, 1",
        "ON, CAPTURE, 0, false, 4"
    })
    void whatIsForeseenIsWhatIsKept(
            FlashAttention flash, Observation observation, int range, boolean fates, int blocksOfPrompt) {
        CacheOptions options = options(flash, observation).withPromptBlock(blocksOfPrompt * BLOCK);
        options = range > 0 ? options.withPositionRange(range) : options;
        options = fates ? options.withFates() : options;
        long kept = bytes(ours(), options);
        try (Model model = model()) {
            double foreseen = CacheChecks.tableBytes(model, ours(), options);
            assertEquals(1, foreseen / kept, 0.03, foreseen + " foreseen, " + kept + " kept");
        }
    }

    /** Nor is a context refused for what its strategy does not have. */
    @ParameterizedTest
    @ValueSource(strings = {"full", "streaming-llm", "knorm", "h2o", "expected-attention"})
    void whatIsForeseenIsNotFarAboveWhatIsKept(String name) {
        Strategy strategy = Strategies.create(name, Strategies.Settings.DEFAULT);
        CacheOptions options = options(FlashAttention.ON, Observation.CAPTURE).withPromptBlock(4 * BLOCK);
        options = strategy.keepsAll()
                ? CacheOptions.unlimited(6 * 4 * BLOCK + 1, BLOCK)
                        .withPromptBlock(4 * BLOCK)
                        .with(options.compute())
                : options;
        long kept = bytes(strategy, options);
        long spared = 25L * LAYERS * KV_HEADS * options.allocated(); // of what is observed of each entry
        try (Model model = model()) {
            long foreseen = CacheChecks.tableBytes(model, strategy, options);
            assertTrue(foreseen <= kept * 1.03 + spared, foreseen + " foreseen, " + kept + " kept");
        }
    }

    /** Captured queries lie where the layers do: the host's memory has none of a GPU's. */
    @Test
    void whatIsCapturedIsToldApart() {
        CacheOptions options = options(FlashAttention.ON, Observation.CAPTURE);
        try (Model model = model()) {
            CacheChecks.Kept captured = CacheChecks.Kept.of(model, options, Watched.observing(model, ours(), options));
            CacheOptions stopping = options(FlashAttention.ON, Observation.STOP);
            CacheChecks.Kept stopped = CacheChecks.Kept.of(model, stopping, Watched.observing(model, ours(), stopping));
            long query = 4L * LAYERS * HEADS * DIM;
            assertEquals(BLOCK * (query + 2 * ALLOCATED), captured.captured());
            assertEquals(0, stopped.captured());
            assertEquals(64 * query, stopped.tables() - captured.tables(), "those that wait for others");
        }
    }

    @Test
    void capturedQueriesAndTheirMasksAreCounted() {
        long captured = bytes(ours(), options(FlashAttention.ON, Observation.CAPTURE));
        long stopped = bytes(ours(), options(FlashAttention.ON, Observation.STOP));
        long query = 4L * LAYERS * HEADS * DIM;
        long more = captured - BLOCK * query - (stopped - 64 * query); // of which 64 wait
        assertTrue(more >= 2L * BLOCK * CELLS && more <= 2 * 2L * BLOCK * ALLOCATED, more + " of masks");
    }

    /** A strategy in Java has keys and values read for it, into native memory and again into arrays. */
    @Test
    void cellsReadForJavaAreCounted() {
        CacheOptions options = options(FlashAttention.OFF, Observation.CAPTURE);
        long ofJava = bytes(new KeyNorm(), options);
        long without = bytes(Strategies.create("streaming-llm", Strategies.Settings.DEFAULT), options);
        int n = CELLS + BLOCK; // at a compression
        assertEquals(4L * n + 2 * 4L * n * 2 * DIM, ofJava - without, "one thread's");
    }
}
