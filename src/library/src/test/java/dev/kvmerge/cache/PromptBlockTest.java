package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.cache.SequenceGroup.Logits;
import dev.kvmerge.cache.SequenceGroup.Part;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Prompts that are read in larger blocks than what is generated. */
@Tag("native")
class PromptBlockTest {
    private static final int CELLS = 48;
    private static final int BLOCK = 32;
    private static final int PROMPT = 96;

    @TempDir
    static Path folder;

    private static Model model;
    private final int[] tokens =
            new Random(1).ints(2 * PROMPT + 80, 0, TinyGguf.VOCABULARY).toArray();

    @BeforeAll
    static void load() {
        model = TestModel.tiny(folder);
    }

    @AfterAll
    static void close() {
        model.close();
    }

    private static CacheOptions options(int block, FlashAttention flash) {
        return CacheOptions.of(CELLS, block)
                .with(ComputeSettings.usual().withThreads(1).withFlashAttention(flash));
    }

    private int[] tokens(int from, int n) {
        return Arrays.copyOfRange(tokens, from, from + n);
    }

    private static float[] logits(CompressedContext context) {
        return context.logits().toArray(ValueLayout.JAVA_FLOAT);
    }

    /** As where all blocks are as large; what is generated is compressed after a block, and before the next prompt. */
    @ParameterizedTest
    @EnumSource(names = {"ON", "OFF"})
    void aPromptIsCompressedAtOnceAndAGenerationByItsBlocks(FlashAttention flash) {
        CacheOptions options = options(BLOCK, flash).withPromptBlock(PROMPT);
        try (CompressedContext prompts = new CompressedContext(model, new EntropyMerged(), options);
                CompressedContext large = new CompressedContext(model, new EntropyMerged(), options(PROMPT, flash))) {
            for (CompressedContext each : List.of(prompts, large)) {
                each.decode(tokens(0, PROMPT), false);
                each.decode(tokens(PROMPT, PROMPT), false);
                assertEquals(CELLS, each.used());
            }
            for (int i = 0; i < BLOCK - 1; i++) {
                prompts.decode(tokens(2 * PROMPT + i, 1));
                large.decode(tokens(2 * PROMPT + i, 1));
                assertArrayEquals(logits(large), logits(prompts));
            }
            assertEquals(CELLS + BLOCK - 1, prompts.used(), "a block is not full yet");
            assertEquals(CELLS + BLOCK - 1, large.used());
            large.flush();
            prompts.decode(tokens(0, BLOCK + 1), false);
            large.decode(tokens(0, BLOCK + 1), false);
            assertArrayEquals(logits(large), logits(prompts), "what was pending was compressed before");
            assertEquals(CELLS, prompts.used());
            for (int i = 0; i < BLOCK; i++) {
                prompts.decode(tokens(i, 1));
            }
            assertEquals(CELLS, prompts.used(), "a block of a generation is compressed");
            assertThrows(IllegalArgumentException.class, () -> prompts.decode(new int[PROMPT + 1]));
        }
    }

    /** Prompts beside generations: each sequence gives what it gives by itself. */
    @Test
    void aGroupReadsPromptsBesideGenerations() {
        CacheOptions options = options(BLOCK, FlashAttention.ON).withPromptBlock(PROMPT);
        try (SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options, 2);
                CompressedContext alone = new CompressedContext(model, new EntropyMerged(), options)) {
            group.decode(List.of(new Part(0, tokens(5, 7), Logits.LAST))).check();
            group.decode(List.of(new Part(0, tokens(20, 1), Logits.LAST), new Part(1, tokens(0, PROMPT), Logits.LAST)))
                    .check();
            assertEquals(8, group.sequence(0).used());
            assertEquals(CELLS, group.sequence(1).used());
            alone.decode(tokens(0, PROMPT), false);
            for (int layer = 0; layer < model.shape().layers(); layer++) {
                assertArrayEquals(
                        alone.cells(layer, 0).position(),
                        group.sequence(1).cells(layer, 0).position());
            }
            List<Part> both =
                    List.of(new Part(0, new int[PROMPT], Logits.NONE), new Part(1, new int[PROMPT], Logits.NONE));
            group.decode(both).check();
            assertEquals(PROMPT + 8, group.sequence(0).position());
            List<Part> tooLong = List.of(new Part(0, new int[PROMPT + 1], Logits.NONE));
            assertThrows(IllegalArgumentException.class, () -> group.decode(tooLong));
        }
    }

    @Test
    void cellsForAPromptsBlockAreAllocated() {
        CacheOptions options = CacheOptions.of(2048, 128);
        assertEquals(128, options.promptBlock());
        assertEquals(2304, options.allocated());
        assertEquals(2560, options.withPromptBlock(512).allocated());
        assertEquals(2560 - 512, options.withPromptBlock(512).filled().cells());
        assertEquals(options, options.withPromptBlock(100), "less than a block counts as a block");
        assertEquals(
                512,
                options.withPromptBlock(512)
                        .withPositionRange(4096)
                        .withFates()
                        .with(ComputeSettings.usual().withThreads(3))
                        .promptBlock());
        assertEquals(
                4096, CacheOptions.unlimited(4096, 128).withPromptBlock(512).wanted());
        KvmergeException.Usage refused =
                assertThrows(KvmergeException.Usage.class, () -> options.withPromptBlock(Integer.MAX_VALUE));
        assertTrue(refused.getMessage().contains("--prompt-block"), refused.getMessage());
    }
}
