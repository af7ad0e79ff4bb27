package dev.kvmerge.benchmarks;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.H2o;
import dev.kvmerge.strategy.RowEntropyMerged;
import dev.kvmerge.strategy.Strategy;
import dev.kvmerge.strategy.StreamingLlm;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/** One plan: a layer and KV head, a block of 128 over the budget, head size 64. SmolLM2-135M needs 90 a block. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
@Fork(1)
public class PlanBenchmark {
    private static final int BLOCK = 128;
    private static final int DIM = 64;

    @Param({"410", "1229", "4096"})
    public int budget;

    @Param({"streaming-llm", "h2o", "entropy-merged", "entropy-merged-row"})
    public String strategy;

    private Strategy planner;
    private CellStats cells;

    @Setup
    public void setUp() {
        Kvmerge.load(Kernels.library("kvmerge"));
        planner = switch (strategy) {
            case "streaming-llm" -> new StreamingLlm(4);
            case "h2o" -> new H2o(0.5);
            case "entropy-merged" -> new EntropyMerged();
            default -> new RowEntropyMerged(0.5, 4, 0.25, Bias.FOLDED);
        };
        int n = budget + BLOCK;
        Random random = new Random(1);
        float[] mass = new float[n];
        float[] entropy = new float[n];
        int[] count = new int[n];
        Arrays.fill(count, 1);
        for (int i = 0; i < n; i++) {
            mass[i] = (float) Math.exp(3 * random.nextGaussian());
            entropy[i] = random.nextFloat();
        }
        float[] keys = new float[n * DIM];
        float[] values = new float[n * DIM];
        for (int i = 0; i < keys.length; i++) {
            keys[i] = (float) random.nextGaussian();
            values[i] = (float) random.nextGaussian();
        }
        CellVectors vectors = CellVectors.of(n, keys, values);
        float[] exposure = new float[n];
        for (int i = 0; i < n; i++) {
            exposure[i] = n - i;
        }
        cells = new CellStats(
                0, 0, IntStream.range(0, n).toArray(), mass, exposure, entropy, count, new float[n], vectors, null);
    }

    @Benchmark
    public Plan plan() {
        return planner.plan(cells, budget);
    }
}
