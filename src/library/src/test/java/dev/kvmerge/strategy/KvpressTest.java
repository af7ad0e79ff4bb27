package dev.kvmerge.strategy;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.KeyRotation;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.kernels.QueryHeads;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Scanner;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Strategies keep what kvpress 0.5.5 keeps of the same layer: src/test/kvpress/fixture.py asked it. */
@Tag("fast")
class KvpressTest {
    private static final Map<String, double[]> FIXTURE = read();
    private static final int TOKENS = shape(0);
    private static final int DIM = shape(1);
    private static final int GROUP = shape(2) / shape(3); // query heads a KV head
    private static final int KEPT = shape(4);
    private static final int WINDOW = shape(5);
    private static final int KERNEL = shape(6);
    private static final int SINKS = shape(7);

    private static int shape(int i) {
        return (int) FIXTURE.get("shape")[i];
    }

    private static Map<String, double[]> read() {
        Map<String, double[]> read = new HashMap<>();
        try (InputStream in = KvpressTest.class.getResourceAsStream("kvpress.txt");
                Scanner words = new Scanner(in)) {
            String name = words.next();
            List<Double> numbers = new ArrayList<>();
            while (words.hasNext()) {
                String word = words.next();
                if (Character.isLetter(word.charAt(0))) {
                    read.put(name, numbers.stream().mapToDouble(x -> x).toArray());
                    numbers.clear();
                    name = word;
                } else {
                    numbers.add(Double.valueOf(word));
                }
            }
            read.put(name, numbers.stream().mapToDouble(x -> x).toArray());
            return read;
        } catch (IOException e) {
            throw new java.io.UncheckedIOException(e);
        }
    }

    private static float[] floats(double[] numbers) {
        float[] rounded = new float[numbers.length];
        for (int i = 0; i < rounded.length; i++) {
            rounded[i] = (float) numbers[i];
        }
        return rounded;
    }

    private static float[] ofHead(String name, int head, int length) {
        double[] all = FIXTURE.get(name);
        return floats(Arrays.copyOfRange(all, head * length, (head + 1) * length));
    }

    /** Attention that each token got from the newest queries, over the query heads of a KV head. */
    private static float[] mass(int kvHead, int newest) {
        double[] mass = new double[TOKENS];
        float[] keys = ofHead("keys", kvHead, TOKENS * DIM);
        for (int head = kvHead * GROUP; head < (kvHead + 1) * GROUP; head++) {
            float[] queries = ofHead("queries", head, TOKENS * DIM);
            for (int q = TOKENS - newest; q < TOKENS; q++) {
                double[] p = new double[q + 1];
                for (int k = 0; k <= q; k++) {
                    double product = 0;
                    for (int d = 0; d < DIM; d++) {
                        product += (double) queries[q * DIM + d] * keys[k * DIM + d];
                    }
                    p[k] = Math.exp(product / Math.sqrt(DIM));
                }
                double sum = Arrays.stream(p).sum();
                for (int k = 0; k <= q; k++) {
                    mass[k] += p[k] / sum;
                }
            }
        }
        return floats(mass);
    }

    /** What kvpress takes of a query head: its queries before their rotation, but the sinks', times the scale. */
    private static Observer.QueryMoments moments(int head, KeyRotation rotation) {
        float[] queries = ofHead("queries", head, TOKENS * DIM);
        rotation.undo(IntStream.range(0, TOKENS).toArray(), queries);
        float[] mean = new float[DIM];
        float[] second = new float[DIM * DIM];
        double weight = 1.0 / (TOKENS - SINKS);
        for (int t = SINKS; t < TOKENS; t++) {
            for (int i = 0; i < DIM; i++) {
                mean[i] += (float) (weight * queries[t * DIM + i] / Math.sqrt(DIM));
                for (int j = 0; j < DIM; j++) {
                    second[i * DIM + j] += (float) (weight * queries[t * DIM + i] * queries[t * DIM + j] / DIM);
                }
            }
        }
        return new Observer.QueryMoments(mean, second);
    }

    private static QueryHeads queryHeads(int kvHead) {
        double[] frequency = new double[DIM / 2];
        Arrays.setAll(frequency, j -> Math.pow(10_000, -2.0 * j / DIM));
        KeyRotation rotation = new KeyRotation(frequency, true, 0);
        return new QueryHeads(
                IntStream.range(kvHead * GROUP, (kvHead + 1) * GROUP)
                        .mapToObj(head -> moments(head, rotation))
                        .toList(),
                rotation,
                TOKENS);
    }

    private static CellStats cells(int kvHead, int newest) {
        int[] count = new int[TOKENS];
        Arrays.fill(count, 1);
        double[] exposure = new double[TOKENS];
        Arrays.setAll(exposure, i -> TOKENS - i);
        float[] keys = ofHead("keys", kvHead, TOKENS * DIM);
        float[] values = ofHead("values", kvHead, TOKENS * DIM);
        CellStats cells = new CellStats(
                0,
                kvHead,
                IntStream.range(0, TOKENS).toArray(),
                mass(kvHead, newest),
                floats(exposure),
                null,
                count,
                null,
                CellVectors.of(TOKENS, keys, values),
                null);
        return cells.withQueryHeads(() -> queryHeads(kvHead));
    }

    @ParameterizedTest
    @CsvSource({"streaming-llm", "knorm", "keydiff", "snapkv", "average-mass", "tova", "expected-attention"})
    void keepsWhatTheReferenceKeeps(String name) {
        Strategy strategy =
                switch (name) {
                    case "streaming-llm" -> new StreamingLlm(SINKS);
                    case "knorm" -> new KeyNorm();
                    case "keydiff" -> new KeyDiff();
                    case "snapkv" -> new SnapKv(WINDOW, KERNEL);
                    case "average-mass" -> new AverageMass(0, 0, 1);
                    case "tova" -> new Tova();
                    default -> new ExpectedAttention(SINKS, 0, 512);
                };
        int newest = name.equals("snapkv") ? WINDOW : name.equals("tova") ? 1 : TOKENS;
        for (int head = 0; head < shape(3); head++) {
            int[] target = strategy.plan(cells(head, newest), KEPT).target();
            int[] kept = IntStream.range(0, TOKENS).filter(i -> target[i] == i).toArray();
            int[] reference = Arrays.stream(FIXTURE.get(name + "-" + head))
                    .mapToInt(x -> (int) x)
                    .toArray();
            assertArrayEquals(reference, kept, name + ", KV head " + head);
        }
    }
}
