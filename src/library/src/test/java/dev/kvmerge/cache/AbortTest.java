package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
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
}
