package dev.kvmerge.benchmarks;

import dev.kvmerge.bindings.Kvmerge_h;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import java.util.concurrent.TimeUnit;
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

/** Entropy of attention rows through FFM, beside a plain Java loop and the machine's copy bandwidth. Bytes: 4 * rows * cells. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
@Fork(1)
public class EntropyBenchmark {
    private static final int ROWS = 1152; // 9 heads, a block of 128

    @Param({"512", "1536", "4096"})
    public int cells;

    private MemorySegment p;
    private MemorySegment entropy;
    private MemorySegment copy;
    private float[] heap;
    private float[] heapEntropy;

    @Setup
    public void setUp() {
        Native.load();
        Arena arena = Arena.ofAuto();
        p = arena.allocate(ValueLayout.JAVA_FLOAT, (long) ROWS * cells);
        copy = arena.allocate(ValueLayout.JAVA_FLOAT, (long) ROWS * cells);
        entropy = arena.allocate(ValueLayout.JAVA_FLOAT, ROWS);
        heapEntropy = new float[ROWS];
        Random random = new Random(1);
        for (int r = 0; r < ROWS; r++) {
            double[] row = random.doubles(cells).map(x -> Math.exp(4 * x)).toArray();
            double sum = java.util.Arrays.stream(row).sum();
            for (int c = 0; c < cells; c++) {
                p.setAtIndex(ValueLayout.JAVA_FLOAT, (long) r * cells + c, (float) (row[c] / sum));
            }
        }
        heap = p.toArray(ValueLayout.JAVA_FLOAT);
    }

    @Benchmark
    public int kernel() {
        return Kvmerge_h.kvmerge_row_entropy(p, ROWS, cells, entropy);
    }

    @Benchmark
    public float[] plainJava() {
        double inverse = 1 / Math.log(cells);
        for (int r = 0; r < ROWS; r++) {
            double h = 0;
            for (int c = 0; c < cells; c++) {
                float x = heap[r * cells + c];
                if (x > 0) {
                    h -= x * Math.log(x);
                }
            }
            heapEntropy[r] = (float) (h * inverse);
        }
        return heapEntropy;
    }

    @Benchmark
    public MemorySegment copyBandwidth() {
        return copy.copyFrom(p);
    }
}
