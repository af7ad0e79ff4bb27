package dev.kvmerge.benchmarks;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
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

/**
 * Every kernel of the list on one core, through FFM, beside a plain Java loop, the Vector API, and how fast the machine
 * reads and copies as many bytes. {@link Table} runs it and writes the table.
 */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
@Warmup(iterations = 1, time = 400, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Fork(
        value = 1,
        jvmArgsAppend = {"-Xmx6g", "--add-modules=jdk.incubator.vector", "--enable-native-access=ALL-UNNAMED"})
public class KernelBenchmark {
    @Param({"attention_stats"})
    public String kernel;

    @Param({"SMOLLM2_135M"})
    public String shape;

    @Param({"4096"})
    public int cells;

    /** kernel, scalar, vector, copy or read. */
    @Param({"kernel"})
    public String version;

    private Problem problem;
    private Runnable body;

    @Setup
    public void setUp() {
        problem = new Problem(kernel, Problem.Shape.valueOf(shape), cells);
        body = switch (version) {
            case "kernel" -> problem::run;
            case "scalar", "vector" -> {
                boolean vector = version.equals("vector");
                if (!JavaKernels.run(kernel, problem, vector)) {
                    throw new IllegalStateException("no Java version of " + kernel);
                }
                yield () -> JavaKernels.run(kernel, problem, vector);
            }
            case "copy" -> {
                // As many bytes moved as the kernel reads and writes: half of them read, half written.
                MemorySegment from = Arena.ofAuto().allocate(problem.bytes / 2, 64);
                MemorySegment to = Arena.ofAuto().allocate(problem.bytes / 2, 64);
                from.fill((byte) 1);
                yield () -> to.copyFrom(from);
            }
            default -> throw new IllegalStateException(version);
        };
    }

    @Benchmark
    public Runnable run() {
        body.run();
        return body;
    }
}
