package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.SequenceGroup.Decoded;
import dev.kvmerge.cache.SequenceGroup.Logits;
import dev.kvmerge.cache.SequenceGroup.Part;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.H2o;
import dev.kvmerge.strategy.StreamingLlm;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Sequences of one llama.cpp context: each gives what it gives alone, whatever the others do. */
@Tag("native")
class SequenceGroupTest {
    private static final int CELLS = 48;
    private static final int BLOCK = 32;
    private static final int SEQUENCES = 3;
    private static final float TOLERANCE = 2e-2f; // of logits, which are about 1

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

    private static CacheOptions options(FlashAttention flash, Observation observation) {
        return CacheOptions.of(CELLS, BLOCK)
                .with(ComputeSettings.usual()
                        .withThreads(1)
                        .withFlashAttention(flash)
                        .withObservation(observation));
    }

    private static CacheOptions options() {
        return options(FlashAttention.ON, Observation.CAPTURE);
    }

    private static float[] floats(MemorySegment logits) {
        return logits.toArray(ValueLayout.JAVA_FLOAT);
    }

    private static int likeliest(float[] logits) {
        int best = logits.length - TinyGguf.VOCABULARY; // of the last row
        for (int i = best; i < logits.length; i++) {
            best = logits[i] > logits[best] ? i : best;
        }
        return best % TinyGguf.VOCABULARY;
    }

    private static Planner planner(String name) {
        return switch (name) {
            case "streaming-llm" -> new StreamingLlm(4);
            case "h2o" -> new H2o(0.5);
            default -> new EntropyMerged();
        };
    }

    @ParameterizedTest
    @CsvSource({
        "entropy-merged, ON, CAPTURE",
        "entropy-merged, ON, STOP",
        "entropy-merged, OFF, STOP",
        "h2o, ON, CAPTURE",
        "streaming-llm, ON, CAPTURE"
    })
    void together(String strategy, FlashAttention flash, Observation observation) {
        CacheOptions options = options(flash, observation);
        List<CompressedContext> alone = new ArrayList<>();
        try (SequenceGroup group = new SequenceGroup(model, planner(strategy), options, SEQUENCES)) {
            int[] next = new int[SEQUENCES];
            List<Part> prompts = new ArrayList<>();
            for (int s = 0; s < SEQUENCES; s++) {
                alone.add(new CompressedContext(model, planner(strategy), options));
                int[] prompt = tokens(BLOCK - 7 * s); // so that blocks end at different times
                alone.get(s).decode(prompt, false);
                next[s] = likeliest(floats(alone.get(s).logits()));
                prompts.addFirst(new Part(s, prompt, Logits.LAST)); // not in the order of the sequences
            }
            Decoded read = group.decode(prompts);
            for (int s = 0; s < SEQUENCES; s++) {
                assertEquals(next[s], likeliest(floats(read.logits(SEQUENCES - 1 - s))));
            }
            int ties = 0;
            for (int step = 0; step < 3 * BLOCK; step++) {
                List<Part> parts = new ArrayList<>();
                for (int s = 0; s < SEQUENCES; s++) {
                    parts.add(new Part(s, new int[] {next[s]}, Logits.ALL));
                }
                Decoded decoded = group.decode(parts);
                decoded.check();
                for (int s = 0; s < SEQUENCES; s++) {
                    alone.get(s).decode(new int[] {next[s]});
                    float[] expected = floats(alone.get(s).logits());
                    float[] found = floats(decoded.logits(s));
                    assertArrayEquals(expected, found, TOLERANCE, strategy + " " + step + " " + s);
                    assertEquals(alone.get(s).used(), group.sequence(s).used());
                    next[s] = likeliest(expected);
                    if (likeliest(found) != next[s]) { // a tie, which last bits decide
                        assertEquals(expected[next[s]], expected[likeliest(found)], 2 * TOLERANCE);
                        ties++;
                    }
                }
            }
            assertTrue(ties < 10, "the random model has " + ties + " ties in 288");
        } finally {
            alone.forEach(CompressedContext::close);
        }
    }

    /** With the same batches, to the bit: a sequence by itself, whatever the others have done before. */
    @Test
    void byItself() {
        try (SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options(), SEQUENCES);
                CompressedContext alone = new CompressedContext(model, new EntropyMerged(), options())) {
            for (int block = 0; block < 4; block++) {
                int[] tokens = tokens(BLOCK);
                group.decode(List.of(new Part(0, tokens(9), Logits.NONE), new Part(2, tokens(20), Logits.NONE)))
                        .check();
                alone.decode(tokens);
                Decoded decoded = group.decode(List.of(new Part(1, tokens, Logits.ALL)));
                assertArrayEquals(floats(alone.logits()), floats(decoded.logits(0)), "block " + block);
                int[] token = tokens(1);
                alone.decode(token);
                alone.flush();
                group.sequence(1).decode(token, true);
                assertArrayEquals(
                        floats(alone.logits()), floats(group.sequence(1).logits()), "token " + block);
                group.sequence(1).flush();
            }
        }
    }

    /** Keeps two sinks and the newest. */
    private static Plan window(CellStats cells, int budget) {
        boolean[] kept = new boolean[cells.size()];
        for (int i = 0; i < kept.length; i++) {
            kept[i] = i < 2 || i >= kept.length - (budget - 2);
        }
        return Plan.keep(kept);
    }

    @Test
    void aFailureIsOneSequences() {
        AtomicBoolean failing = new AtomicBoolean();
        Planner wrong = (cells, budget) -> {
            if (failing.get()) {
                throw new IllegalStateException("on purpose");
            }
            return window(cells, budget);
        };
        Planner right = SequenceGroupTest::window;
        try (SequenceGroup group = new SequenceGroup(model, i -> i == 1 ? wrong : right, options(), SEQUENCES);
                SequenceGroup never = new SequenceGroup(model, right, options(), SEQUENCES)) {
            for (int block = 0; block < 5; block++) {
                List<Part> parts = new ArrayList<>();
                for (int s = 0; s < SEQUENCES; s++) {
                    parts.add(new Part(s, tokens(BLOCK), Logits.ALL));
                }
                failing.set(block == 2);
                Decoded decoded = group.decode(parts);
                Decoded expected = never.decode(parts);
                for (int s = 0; s < SEQUENCES; s++) {
                    assertTrue(decoded.isDecoded(s));
                    assertArrayEquals(floats(expected.logits(s)), floats(decoded.logits(s)), block + " " + s);
                    assertEquals(s == 1 && block == 2, decoded.failure(s) != null);
                    assertEquals(never.sequence(s).position(), group.sequence(s).position());
                }
                if (block == 2) { // it is left out of a batch as long as it fails, and goes on where it was
                    assertThrows(IllegalStateException.class, decoded::check);
                    int[] token = tokens(1);
                    Decoded out =
                            group.decode(List.of(new Part(0, token, Logits.ALL), new Part(1, tokens(1), Logits.ALL)));
                    Decoded in = never.decode(List.of(new Part(0, token, Logits.ALL)));
                    assertFalse(out.isDecoded(1));
                    assertNull(out.logits(1));
                    assertEquals("on purpose", out.failure(1).getMessage());
                    assertArrayEquals(floats(in.logits(0)), floats(out.logits(0)));
                    group.sequence(0).flush();
                    never.sequence(0).flush();
                }
            }
        }
    }

    /** What one takes back is its own: the others keep the same positions. */
    @Test
    void aSequenceTakesBackItsOwn() {
        try (SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options(), SEQUENCES);
                SequenceGroup never = new SequenceGroup(model, new EntropyMerged(), options(), SEQUENCES)) {
            for (int block = 0; block < 3; block++) {
                int[] text = tokens(BLOCK);
                for (SequenceGroup each : List.of(group, never)) {
                    each.decode(List.of(new Part(0, text, Logits.NONE), new Part(1, text, Logits.NONE)))
                            .check();
                    each.sequence(0).flush();
                    each.sequence(1).flush();
                }
                group.sequence(1).decode(tokens(9));
                assertEquals(9, group.sequence(1).takeBack());
                int[] token = tokens(1);
                for (int s = 0; s < 2; s++) {
                    group.sequence(s).decode(token);
                    never.sequence(s).decode(token);
                    assertArrayEquals(
                            floats(never.sequence(s).logits()),
                            floats(group.sequence(s).logits()),
                            block + " " + s);
                    group.sequence(s).flush();
                    never.sequence(s).flush();
                }
            }
        }
    }

    @Test
    void aSequenceIsFreedAndUsedAgain() {
        try (SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options(), SEQUENCES);
                SequenceGroup never = new SequenceGroup(model, new EntropyMerged(), options(), SEQUENCES);
                CompressedContext fresh = new CompressedContext(model, new EntropyMerged(), options())) {
            for (int block = 0; block < 3; block++) {
                List<Part> parts = new ArrayList<>();
                for (int s = 0; s < SEQUENCES; s++) {
                    parts.add(new Part(s, tokens(BLOCK - s), Logits.NONE));
                }
                group.decode(parts).check();
                never.decode(parts).check();
            }
            group.sequence(1).clear();
            assertEquals(0, group.sequence(1).used());
            for (int block = 0; block < 4; block++) {
                int[] other = tokens(BLOCK);
                int[] tokens = tokens(BLOCK);
                Decoded both = group.decode(List.of(new Part(0, other, Logits.ALL)));
                Decoded one = never.decode(List.of(new Part(0, other, Logits.ALL)));
                assertArrayEquals(floats(one.logits(0)), floats(both.logits(0)), "another sequence");
                fresh.decode(tokens);
                assertArrayEquals(
                        floats(fresh.logits()),
                        floats(group.decode(List.of(new Part(1, tokens, Logits.ALL)))
                                .logits(0)),
                        "block " + block);
            }
            group.sequence(2).forkInto(group.sequence(1));
            int[] tokens = tokens(BLOCK / 2);
            float[] forked = floats(
                    group.decode(List.of(new Part(1, tokens, Logits.ALL))).logits(0));
            assertArrayEquals(
                    forked,
                    floats(group.decode(List.of(new Part(2, tokens, Logits.ALL)))
                            .logits(0)));
        }
    }

    @Test
    void refusals() {
        CacheOptions options = options();
        assertThrows(KvmergeException.class, () -> new SequenceGroup(model, new EntropyMerged(), options, 0));
        assertThrows(KvmergeException.class, () -> new SequenceGroup(model, new EntropyMerged(), options, 257));
        assertThrows( // of all sequences together
                KvmergeException.class,
                () -> new SequenceGroup(model, new EntropyMerged(), CacheOptions.of(1 << 28, BLOCK), 8));
        SequenceGroup group = new SequenceGroup(model, new EntropyMerged(), options, 2);
        try (group) {
            Part part = new Part(0, tokens(1), Logits.ALL);
            for (List<Part> wrong : List.of(
                    List.<Part>of(),
                    List.of(part, part),
                    List.of(new Part(2, tokens(1), Logits.ALL)),
                    List.of(new Part(-1, tokens(1), Logits.ALL)),
                    List.of(part, new Part(1, new int[0], Logits.ALL)),
                    List.of(part, new Part(1, tokens(BLOCK + 1), Logits.ALL)),
                    List.of(part, new Part(1, new int[] {TinyGguf.VOCABULARY}, Logits.ALL)))) {
                assertThrows(IllegalArgumentException.class, () -> group.decode(wrong));
            }
            assertEquals(0, group.sequence(0).position());
            assertNotNull(group.decode(List.of(part)).logits(0));
            group.sequence(0).close(); // does nothing
            assertNotNull(group.decode(List.of(part)).logits(0));
        }
        assertThrows(IllegalStateException.class, () -> group.decode(List.of(new Part(0, new int[] {1}, Logits.ALL))));
    }
}
