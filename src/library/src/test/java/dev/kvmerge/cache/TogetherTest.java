package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvmerge.TestModel;
import dev.kvmerge.cache.SequenceGroup.Decoded;
import dev.kvmerge.cache.SequenceGroup.Logits;
import dev.kvmerge.cache.SequenceGroup.Part;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** A real model goes on with several passages of a book at once as it goes on with each. */
@Tag("model")
class TogetherTest {
    private static final int CELLS = 96;
    private static final int BLOCK = 32;
    private static final int GENERATED = 40; // with a compression of each

    private static int likeliest(MemorySegment logits) {
        float[] x = logits.toArray(ValueLayout.JAVA_FLOAT);
        int best = 0;
        for (int i = 0; i < x.length; i++) {
            best = x[i] > x[best] ? i : best;
        }
        return best;
    }

    @Test
    void greedily() {
        Model model = TestModel.model();
        CacheOptions options =
                CacheOptions.of(CELLS, BLOCK).with(ComputeSettings.usual().withFlashAttention(FlashAttention.ON));
        List<List<Integer>> alone = new ArrayList<>();
        List<List<Integer>> together = new ArrayList<>();
        int[][] passages = new int[3][];
        for (int s = 0; s < passages.length; s++) {
            passages[s] = TestModel.book(1000 * s, 4 * BLOCK - 9 * s);
            List<Integer> tokens = new ArrayList<>();
            try (CompressedContext context = new CompressedContext(model, new EntropyMerged(), options)) {
                for (int at = 0; at < passages[s].length; at += BLOCK) {
                    context.decode(
                            Arrays.copyOfRange(passages[s], at, Math.min(passages[s].length, at + BLOCK)), false);
                }
                for (int i = 0; i < GENERATED; i++) {
                    tokens.add(likeliest(context.logits()));
                    context.decode(new int[] {tokens.getLast()}, false);
                }
            }
            alone.add(tokens);
            together.add(new ArrayList<>());
        }
        try (SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options, passages.length)) {
            Decoded decoded = null;
            for (int at = 0; at < 4 * BLOCK; at += BLOCK) {
                List<Part> parts = new ArrayList<>();
                for (int s = 0; s < passages.length; s++) {
                    int end = Math.min(passages[s].length, at + BLOCK);
                    parts.add(new Part(s, Arrays.copyOfRange(passages[s], at, end), Logits.LAST));
                }
                decoded = group.decode(parts);
                decoded.check();
            }
            for (int i = 0; i < GENERATED; i++) {
                List<Part> parts = new ArrayList<>();
                for (int s = 0; s < passages.length; s++) {
                    together.get(s).add(likeliest(decoded.logits(s)));
                    parts.add(new Part(s, new int[] {together.get(s).getLast()}, Logits.LAST));
                }
                decoded = group.decode(parts);
                decoded.check();
            }
        }
        assertEquals(alone, together);
    }
}
