package dev.kvmerge.benchmarks;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;

/**
 * One layer's worth of data at a model's shape, in native memory and the same on the heap, and for each kernel its
 * descriptor and the bytes it reads and writes.
 */
final class Problem {
    static final int ROWS = 128; // a block
    static final int F16 = 1;
    static final int VOCABULARY = 49152;
    private static final int GROUP_SIZE = 3; // members of a merged group

    /** Attention shapes: query heads, KV heads, head size. */
    enum Shape {
        LLAMA_2_7B(32, 32, 128),
        LLAMA_3_8B(32, 8, 128),
        SMOLLM2_135M(9, 3, 64);

        final int heads;
        final int kvHeads;
        final int dim;

        Shape(int heads, int kvHeads, int dim) {
            this.heads = heads;
            this.kvHeads = kvHeads;
            this.dim = dim;
        }
    }

    private final Arena arena = Arena.ofAuto();
    private final Random random = new Random(1);
    final Shape shape;
    final int cells;
    final int dim;
    final int heads;
    final int kvHeads;
    final MemorySegment name;
    final Kernels.Struct args;
    final long bytes;

    // The heap's copies, for what is compared.
    float[] x;
    float[] y;
    float[] out;
    short[] half;
    int[] index;

    Problem(String kernel, Shape shape, int cells) {
        this.shape = shape;
        this.cells = cells;
        this.dim = shape.dim;
        this.heads = shape.heads;
        this.kvHeads = shape.kvHeads;
        this.name = arena.allocateFrom(kernel.replace("+entropy", "").replace("-entropy-only", ""));
        this.args = new Kernels.Struct(arena);
        this.bytes = switch (kernel) {
            case "attention_stats" -> attention(true, false);
            case "attention_stats+entropy" -> attention(true, true);
            case "attention_stats-entropy-only" -> attention(false, true);
            case "score_stats" -> scores();
            case "find_spans" -> spans();
            case "query_moments" -> moments();
            case "fold_direction" -> fold();
            case "gather_cells" -> gather(true);
            case "scatter_cells" -> gather(false);
            case "merge_cells" -> merge();
            case "project_cells" -> project();
            case "expected_attention" -> expected();
            case "plan_groups" -> plan();
            case "log_sum_exp" -> logSumExp();
            case "kl_row" -> kl();
            default -> throw new IllegalStateException("no benchmark for the kernel " + kernel + ": add one here");
        };
    }

    void run() {
        Kernels.run(name, args.memory(), args.bytes());
    }

    private MemorySegment floats(float[] values) {
        return arena.allocateFrom(ValueLayout.JAVA_FLOAT, values);
    }

    private MemorySegment zeros(long n) {
        return arena.allocate(4 * n, 64);
    }

    private float[] normals(long n) {
        float[] v = new float[Math.toIntExact(n)];
        // A short period: Gaussians are slow to draw, and no kernel is faster on repetition.
        float[] period = new float[10007];
        for (int i = 0; i < period.length; i++) {
            period[i] = (float) random.nextGaussian();
        }
        for (int i = 0; i < v.length; i++) {
            v[i] = period[i % period.length];
        }
        return v;
    }

    private long attention(boolean mass, boolean entropy) {
        float[] scores = normals(cells);
        x = new float[Math.toIntExact((long) heads * ROWS * cells)];
        double sum = 0;
        for (float s : scores) {
            sum += Math.exp(2 * s);
        }
        for (int row = 0; row < heads * ROWS; row++) {
            for (int c = 0; c < cells; c++) {
                x[row * cells + c] = row == 0 ? (float) (Math.exp(2 * scores[c]) / sum) : x[c];
            }
        }
        y = new float[kvHeads * cells];
        out = new float[heads * ROWS];
        float[] inverse = new float[ROWS];
        java.util.Arrays.fill(inverse, (float) (1 / Math.log(cells)));
        args.pointer(floats(x))
                .size((long) ROWS * cells)
                .size(cells)
                .integer(kvHeads)
                .integer(heads / kvHeads)
                .integer(ROWS)
                .integer(cells)
                .integer(2)
                .pointer(mass ? zeros(y.length) : MemorySegment.NULL)
                .size(cells)
                .pointer(entropy ? zeros(out.length) : MemorySegment.NULL)
                .size(ROWS)
                .pointer(floats(inverse));
        return 4L * x.length;
    }

    private MemorySegment halves(long n) {
        half = new short[Math.toIntExact(n)];
        float[] source = normals(Math.min(n, 10007));
        for (int i = 0; i < half.length; i++) {
            half[i] = Float.floatToFloat16(source[i % source.length]);
        }
        return arena.allocateFrom(ValueLayout.JAVA_SHORT, half);
    }

    private long scores() {
        x = normals((long) ROWS * heads * dim);
        y = new float[kvHeads * cells];
        out = new float[heads * ROWS];
        MemorySegment keys = halves((long) cells * kvHeads * dim);
        args.pointer(floats(x))
                .size(dim)
                .size((long) heads * dim)
                .integer(kvHeads)
                .integer(heads / kvHeads)
                .integer(ROWS)
                .cells(keys, F16, false, dim, cells, 2L * kvHeads * dim)
                .integer(0)
                .integer(cells)
                .pointer(MemorySegment.NULL)
                .size(0)
                .single((float) (1 / Math.sqrt(dim)))
                .single(0)
                .integer(2)
                .pointer(zeros(y.length))
                .size(cells)
                .pointer(MemorySegment.NULL)
                .size(0)
                .pointer(MemorySegment.NULL);
        return 2L * half.length;
    }

    private long spans() {
        x = normals((long) kvHeads * cells);
        index = new int[x.length];
        args.pointer(floats(x))
                .size(cells)
                .integer(kvHeads)
                .integer(4)
                .integer(cells - 64)
                .single(0.5f)
                .integer(8)
                .pointer(zeros(x.length));
        return 8L * x.length;
    }

    private long moments() {
        x = normals((long) ROWS * heads * dim);
        out = new float[kvHeads * dim * dim];
        args.pointer(floats(x))
                .size(dim)
                .size((long) heads * dim)
                .integer(kvHeads)
                .integer(heads / kvHeads)
                .integer(ROWS)
                .integer(dim)
                .single(0.7f)
                .pointer(zeros((long) kvHeads * dim))
                .pointer(zeros(out.length));
        return 4L * x.length;
    }

    private long fold() {
        float[] second = new float[kvHeads * dim * dim];
        for (int h = 0; h < kvHeads; h++) {
            for (int i = 0; i < dim; i++) {
                second[(h * dim + i) * dim + i] = 1 + random.nextFloat();
            }
        }
        args.pointer(floats(normals((long) kvHeads * dim)))
                .pointer(floats(second))
                .integer(kvHeads)
                .integer(dim)
                .real(1)
                .real(0.05)
                .pointer(zeros((long) kvHeads * dim));
        return 4L * second.length;
    }

    private MemorySegment order(int n) {
        index = new int[n];
        java.util.Arrays.setAll(index, i -> i);
        return arena.allocateFrom(ValueLayout.JAVA_INT, index);
    }

    private long gather(boolean read) {
        MemorySegment keys = halves((long) cells * kvHeads * dim);
        out = normals((long) cells * dim);
        args.cells(keys, F16, false, dim, cells, 2L * kvHeads * dim)
                .integer(0)
                .pointer(order(cells))
                .integer(cells)
                .pointer(floats(out));
        return (2L + 4L) * cells * dim;
    }

    /** Triples of neighbours become one cell, packed to the front; all KV heads of a layer. */
    private long merge() {
        int groups = cells / GROUP_SIZE;
        MemorySegment keys = halves((long) cells * kvHeads * dim);
        MemorySegment values = arena.allocateFrom(ValueLayout.JAVA_SHORT, half);
        int[] start = new int[groups + 1];
        java.util.Arrays.setAll(start, g -> GROUP_SIZE * g);
        int[] delta = new int[groups * GROUP_SIZE];
        float[] weight = new float[delta.length];
        for (int i = 0; i < delta.length; i++) {
            delta[i] = i % GROUP_SIZE - 1;
            weight[i] = 1f / GROUP_SIZE;
        }
        MemorySegment members = order(groups * GROUP_SIZE);
        MemorySegment starts = arena.allocateFrom(ValueLayout.JAVA_INT, start);
        MemorySegment deltas = arena.allocateFrom(ValueLayout.JAVA_INT, delta);
        MemorySegment weights = floats(weight);
        MemorySegment destinations = arena.allocateFrom(ValueLayout.JAVA_INT, index);
        MemorySegment frequencies = frequencies();
        MemorySegment bias = zeros(groups);
        MemorySegment direction = floats(normals(dim));
        Kernels.Struct first = null;
        Kernels.Struct[] all = new Kernels.Struct[kvHeads];
        for (int h = 0; h < kvHeads; h++) {
            all[h] = new Kernels.Struct(arena)
                    .cells(keys, F16, false, dim, cells, 2L * kvHeads * dim)
                    .cells(values, F16, false, dim, cells, 2L * kvHeads * dim)
                    .integer(h)
                    .integer(groups)
                    .pointer(starts)
                    .pointer(members)
                    .pointer(deltas)
                    .pointer(weights)
                    .pointer(weights)
                    .pointer(destinations)
                    .pointer(bias)
                    .pointer(direction)
                    .pointer(zeros((long) groups * 2 * dim))
                    .integer(dim)
                    .integer(1)
                    .pointer(frequencies)
                    .integer(0);
            first = first == null ? all[h] : first;
        }
        MemorySegment array = arena.allocate(first.bytes() * kvHeads, 8);
        for (int h = 0; h < kvHeads; h++) {
            array.asSlice(h * first.bytes()).copyFrom(all[h].memory().asSlice(0, first.bytes()));
        }
        args.pointer(array).integer(kvHeads);
        // Members read, groups written, K and V.
        return 2L * 2 * kvHeads * dim * (groups * GROUP_SIZE + groups);
    }

    /** A block has come to a full head: as many cells as it has have to go. */
    private long plan() {
        MemorySegment keys = halves((long) cells * kvHeads * dim);
        MemorySegment values = arena.allocateFrom(ValueLayout.JAVA_SHORT, half);
        double[] rate = new double[cells];
        java.util.Arrays.setAll(rate, i -> Math.exp(3 * random.nextGaussian()));
        args.cells(keys, F16, false, dim, cells, 2L * kvHeads * dim)
                .cells(values, F16, false, dim, cells, 2L * kvHeads * dim)
                .integer(0)
                .pointer(order(cells))
                .integer(cells)
                .pointer(arena.allocateFrom(ValueLayout.JAVA_DOUBLE, rate))
                .integer(4)
                .integer(cells - cells / 4)
                .integer(ROWS)
                .integer(8)
                .real(1)
                .pointer(zeros(cells))
                .pointer(zeros(2))
                .pointer(MemorySegment.NULL); // nothing is known from a call before
        return 2L * 2 * cells * dim;
    }

    private long project() {
        MemorySegment keys = halves((long) cells * kvHeads * dim);
        MemorySegment values = arena.allocateFrom(ValueLayout.JAVA_SHORT, half);
        MemorySegment order = order(cells);
        args.cells(keys, F16, false, dim, cells, 2L * kvHeads * dim)
                .cells(values, F16, false, dim, cells, 2L * kvHeads * dim)
                .integer(0)
                .pointer(order)
                .pointer(order)
                .integer(cells)
                .pointer(floats(normals(dim)))
                .integer(dim)
                .integer(0)
                .pointer(frequencies())
                .integer(0)
                .pointer(zeros(cells))
                .pointer(zeros(cells));
        return 2L * 2 * cells * dim;
    }

    private long expected() {
        double[] rate = new double[cells];
        java.util.Arrays.setAll(rate, i -> random.nextDouble());
        args.integer(cells)
                .pointer(arena.allocateFrom(ValueLayout.JAVA_DOUBLE, rate))
                .pointer(floats(normals(cells)))
                .pointer(order(cells))
                .integer(cells)
                .real(1e-6)
                .pointer(floats(normals(4)))
                .pointer(zeros(2L * cells));
        return 24L * cells;
    }

    private MemorySegment frequencies() {
        double[] freq = new double[dim / 2];
        java.util.Arrays.setAll(freq, i -> Math.pow(10000, -2.0 * i / dim));
        return arena.allocateFrom(ValueLayout.JAVA_DOUBLE, freq);
    }

    private long logSumExp() {
        args.pointer(floats(normals(VOCABULARY)))
                .size(VOCABULARY)
                .pointer(zeros(2))
                .pointer(zeros(2));
        return 4L * VOCABULARY;
    }

    private long kl() {
        args.pointer(halves(VOCABULARY))
                .single(1e-4f)
                .single(-10)
                .pointer(floats(normals(VOCABULARY)))
                .real(10)
                .size(VOCABULARY)
                .pointer(zeros(2));
        return 6L * VOCABULARY;
    }
}
