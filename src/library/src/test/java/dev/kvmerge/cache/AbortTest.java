package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Random;
import java.util.concurrent.locks.LockSupport;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A decode that is aborted has never been: the context goes on as one that did without it, bit for bit. */
@Tag("native")
class AbortTest {
    private static final int CELLS = 48;
    private static final int BLOCK = 32;

    @TempDir
    static Path folder;

    private static Model model;
    private final Random random = new Random(1);

    @BeforeAll
    static void load() {
        model = TestModel.tiny(folder);
    }

    @AfterAll
    static void close() {
        model.close();
    }

    private int[] tokens(int n) {
        return random.ints(n, 0, TinyGguf.VOCABULARY).toArray();
    }

    private static float[] logits(CompressedContext context) {
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    @ParameterizedTest
    @CsvSource({"OFF, STOP, 32", "ON, CAPTURE, 32", "ON, CAPTURE, 8"})
    void anAbortedDecodeHasNeverBeen(FlashAttention flash, Observation observation, int ubatch) {
        CacheOptions options = CacheOptions.of(CELLS, BLOCK)
                .with(ComputeSettings.usual()
                        .withThreads(1)
                        .withUbatch(ubatch)
                        .withFlashAttention(flash)
                        .withObservation(observation));
        try (CompressedContext aborted = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext never = new CompressedContext(model, new EntropyMerged(), options)) {
            for (int block = 0; block < 6; block++) {
                int[] tokens = tokens(BLOCK);
                aborted.abort(true);
                int before = aborted.position();
                assertThrows(Context.Aborted.class, () -> aborted.decode(tokens(BLOCK)));
                assertEquals(before, aborted.position());
                aborted.abort(false);
                aborted.decode(tokens);
                never.decode(tokens);
                assertArrayEquals(logits(never), logits(aborted), "block " + block);
                int[] token = tokens(1);
                aborted.decode(token);
                never.decode(token);
                aborted.abort(true); // in the middle of a block it comes too late
                aborted.decode(token);
                aborted.abort(false);
                never.decode(token);
                assertArrayEquals(logits(never), logits(aborted), "after block " + block);
                aborted.flush();
                never.flush();
            }
        }
    }

    /**
     * The first ubatches of a decode overwrite what the windows of the tokens before them see. If it is aborted later,
     * the context says that it is broken; else it goes on as one that did without it.
     */
    @Test
    void windowsThatHaveLostSomethingAreNotGoneOnWith() throws Exception {
        int window = 256 - 8; // leaves an ubatch of the windows' 256 cells
        Geometry g = new Geometry("gemma3", 4, 2, 32, 1000000, "none", 32, false, window, 2);
        CacheOptions options = CacheOptions.of(window, BLOCK)
                .with(ComputeSettings.usual().withThreads(1).withUbatch(8).withCellTypes(CellType.F32, CellType.F32));
        try (Model windows =
                        Model.load(TestModel.library(), TinyGguf.write(folder.resolve("w.gguf"), g), Backend.CPU, 0);
                CompressedContext aborted = new CompressedContext(windows, new EntropyMerged(), options);
                CompressedContext never = new CompressedContext(windows, new EntropyMerged(), options)) {
            long nanos = 0;
            for (int block = 0; block < 9; block++) {
                int[] tokens = tokens(BLOCK);
                long start = System.nanoTime();
                aborted.decode(tokens);
                nanos = System.nanoTime() - start;
                never.decode(tokens);
            }
            int whole = 0;
            int broken = 0;
            for (int i = 0; i < 80; i++) { // from its begin to past its end
                long after = nanos * i / 60;
                byte[] before = aborted.state();
                if (abortAfter(aborted, after)) {
                    whole++; // it came too late
                    aborted.restore(before);
                } else if (aborted.isBroken()) {
                    broken++;
                    assertThrows(IllegalStateException.class, () -> aborted.decode(tokens(1)));
                    aborted.restore(before);
                }
                int[] next = tokens(1);
                aborted.decode(next);
                never.decode(next);
                assertArrayEquals(logits(never), logits(aborted), .01f, "aborted after " + after + " ns");
                aborted.flush();
                never.flush();
            }
            assertTrue(broken > 0, whole + " came to their ends, and " + broken + " were aborted half-way");
        }
    }

    /** Whether the decode came to its end. */
    private boolean abortAfter(CompressedContext context, long nanos) throws InterruptedException {
        Thread other = Thread.ofPlatform().start(() -> {
            LockSupport.parkNanos(nanos);
            context.abort(true);
        });
        try {
            context.decode(tokens(BLOCK));
            return true;
        } catch (Context.Aborted e) {
            return false;
        } finally {
            other.join();
            context.abort(false);
        }
    }
}
