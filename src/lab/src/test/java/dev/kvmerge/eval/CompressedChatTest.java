package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What is asked of a conversation leaves no trace in it, also where windows write over what they saw before. */
@Tag("native")
class CompressedChatTest {
    private static final int BLOCK = 32;

    @TempDir
    Path folder;

    private static float[] ask(CompressedChat chat, int token) {
        return chat.ask(new int[] {token}).toArray(ValueLayout.JAVA_FLOAT);
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 48})
    void whatIsAskedLeavesNoTrace(int window) {
        Geometry g = window == 0
                ? new Geometry("llama", 4, 2, 32, 10000, "none", 32, false)
                : new Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, window, 2);
        CacheOptions options = CacheOptions.of(64, BLOCK)
                .with(ComputeSettings.usual().withThreads(1).withCellTypes(CellType.F32, CellType.F32));
        Random random = new Random(5);
        try (Model model = Model.load(
                        TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), g), Backend.CPU, 0);
                CompressedChat asked = new CompressedChat(model, new EntropyMerged(), options);
                CompressedChat never = new CompressedChat(model, new EntropyMerged(), options)) {
            for (int round = 0; round < 40; round++) {
                int[] text = random.ints(1 + random.nextInt(BLOCK), 0, TinyGguf.VOCABULARY)
                        .toArray();
                for (CompressedChat chat : new CompressedChat[] {asked, never}) {
                    chat.read(text);
                    chat.flush();
                }
                for (int i = 0; i < BLOCK - 2; i++) {
                    ask(asked, random.nextInt(TinyGguf.VOCABULARY));
                }
                asked.forget();
                assertEquals(never.used(), asked.used());
                int token = random.nextInt(TinyGguf.VOCABULARY);
                assertArrayEquals(ask(never, token), ask(asked, token), 1e-3f, "round " + round);
                asked.forget();
                never.forget();
            }
        }
    }
}
