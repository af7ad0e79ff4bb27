package dev.kvmerge.benchmarks;

import dev.kvmerge.bindings.Kvmerge_h;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/** What a call over the border costs, next to one that stays in Java. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
@Fork(1)
public class CallBenchmark {
    private long vocabulary = 49152;

    @Setup
    public void setUp() {
        Native.load();
    }

    @Benchmark
    public long downcall() {
        return Kvmerge_h.kvmerge_packed_row_bytes(vocabulary);
    }

    @Benchmark
    public long inJava() {
        return vocabulary > 0 ? 8 + 2 * ((vocabulary + 1) / 2 * 2) : -1;
    }
}
