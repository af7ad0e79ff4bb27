package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.H2o;
import dev.kvmerge.strategy.Strategy;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** What was asked and taken back leaves no trace. */
@Tag("native")
class TakeBackTest {
    private static final int BLOCK = 32;
    private static final int CELLS = 96;
    private static final int[] TOKENS =
            new Random(1).ints(320, 0, TinyGguf.VOCABULARY).toArray();

    @TempDir
    Path folder;

    private static int[] part(int from, int to) {
        return Arrays.copyOfRange(TOKENS, from, to);
    }

    private static float[] decode(CompressedContext context, int[] tokens) {
        context.decode(tokens, false);
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    private static void read(CompressedContext context, int from, int to) {
        for (int at = from; at < to; at += BLOCK) {
            context.decode(part(at, Math.min(to, at + BLOCK)), false);
        }
        context.flush();
    }

    static Stream<Arguments> caches() {
        return Stream.of(0, 48)
                .flatMap(window -> Stream.of(new Full(), new H2o(0.5)).map(strategy -> Arguments.of(strategy, window)));
    }

    @ParameterizedTest
    @MethodSource("caches")
    void aQuestionLeavesNoTrace(Strategy strategy, int window) throws IOException {
        Path file = TinyGguf.write(
                folder.resolve("tiny.gguf"),
                window == 0
                        ? new TinyGguf.Geometry("llama", 4, 2, 32, 10000, "none", 32, false)
                        : new TinyGguf.Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, window, 2));
        CacheOptions options = (strategy.keepsAll()
                        ? CacheOptions.unlimited(TOKENS.length + BLOCK, BLOCK)
                        : CacheOptions.of(CELLS, BLOCK))
                .with(ComputeSettings.usual().withThreads(1));
        try (Model model = Model.load(TestModel.library(), file, Backend.CPU, 0);
                CompressedContext asked = new CompressedContext(model, strategy, options);
                CompressedContext other = new CompressedContext(model, strategy, options)) {
            read(asked, 0, 200);
            read(other, 0, 200);
            int used = asked.used();
            float[] first = null;
            for (int i = 0; i < 6; i++) { // more than llama.cpp's spare cells would hold
                asked.decode(part(300 - i, 319 - i), false); // another question before
                decode(asked, part(1, 8));
                assertEquals(26, asked.takeBack());
                float[] logits = decode(asked, part(280, 310));
                assertEquals(230, asked.position());
                first = first == null ? logits : first;
                assertArrayEquals(first, logits, "the same question, asked again");
                assertEquals(30, asked.takeBack());
                assertEquals(200, asked.position());
                assertEquals(used, asked.used());
            }
            assertEquals(0, asked.takeBack());
            read(asked, 200, 264);
            read(other, 200, 264);
            assertArrayEquals(
                    decode(other, part(264, 270)), decode(asked, part(264, 270)), "the text goes on as if not asked");
        }
    }

    @Test
    void nothingIsTakenBackPastACompression() {
        CompressedContext context =
                new CompressedContext(TestModel.model(), new H2o(0.5), CacheOptions.of(CELLS, BLOCK));
        try (context) {
            context.decode(part(0, 20), false);
            context.decode(part(20, 40), false); // the first 20 were compressed before these
            assertEquals(20, context.takeBack());
            assertEquals(20, context.position());
        }
        assertThrows(IllegalStateException.class, context::takeBack);
    }
}
