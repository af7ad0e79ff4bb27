package dev.kvmerge.benchmarks;

import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * The kernels that are bound by arithmetic or memory, as one would write them in Java: a plain loop, and with the
 * Vector API.
 */
final class JavaKernels {
    private static final VectorSpecies<Float> SPECIES = FloatVector.SPECIES_PREFERRED;

    private JavaKernels() {}

    /** Runs a kernel's Java version on the heap; false where there is none. */
    static boolean run(String kernel, Problem p, boolean vector) {
        switch (kernel) {
            case "attention_stats" -> attention(p, true, false, vector);
            case "attention_stats+entropy" -> attention(p, true, true, vector);
            case "attention_stats-entropy-only" -> attention(p, false, true, vector);
            case "query_moments" -> moments(p, vector);
            case "gather_cells" -> {
                if (vector) {
                    return false; // the Vector API has no half precision
                }
                gather(p);
            }
            case "find_spans" -> {
                if (vector) {
                    return false;
                }
                spans(p);
            }
            default -> {
                return false;
            }
        }
        return true;
    }

    private static void attention(Problem p, boolean mass, boolean entropy, boolean vector) {
        int group = p.heads / p.kvHeads;
        float inverse = (float) (1 / Math.log(p.cells));
        for (int row = 0; row < p.heads * Problem.ROWS; row++) {
            int from = row * p.cells;
            int to = row / Problem.ROWS / group * p.cells;
            if (mass) {
                addTo(p.y, to, p.x, from, p.cells, vector);
            }
            if (entropy) {
                p.out[row] = inverse * (vector ? entropyVector(p.x, from, p.cells) : entropyScalar(p.x, from, p.cells));
            }
        }
    }

    private static void addTo(float[] sum, int to, float[] x, int from, int n, boolean vector) {
        int i = 0;
        for (; vector && i < SPECIES.loopBound(n); i += SPECIES.length()) {
            FloatVector.fromArray(SPECIES, sum, to + i)
                    .add(FloatVector.fromArray(SPECIES, x, from + i))
                    .intoArray(sum, to + i);
        }
        for (; i < n; i++) {
            sum[to + i] += x[from + i];
        }
    }

    private static float entropyScalar(float[] x, int from, int n) {
        double h = 0;
        for (int i = 0; i < n; i++) {
            float p = x[from + i];
            if (p > 0) {
                h -= p * Math.log(p);
            }
        }
        return (float) h;
    }

    private static float entropyVector(float[] x, int from, int n) {
        FloatVector sum = FloatVector.zero(SPECIES);
        int i = 0;
        for (; i < SPECIES.loopBound(n); i += SPECIES.length()) {
            FloatVector p = FloatVector.fromArray(SPECIES, x, from + i);
            sum = sum.add(
                    p.mul(p.lanewise(VectorOperators.LOG)), p.compare(VectorOperators.GT, 0)); // 0 log 0 counts as 0
        }
        float h = -sum.reduceLanes(VectorOperators.ADD);
        return h + (i < n ? entropyScalar(x, from + i, n - i) : 0);
    }

    private static void moments(Problem p, boolean vector) {
        int d = p.dim;
        int group = p.heads / p.kvHeads;
        for (int row = 0; row < Problem.ROWS; row++) {
            for (int h = 0; h < p.heads; h++) {
                int q = (row * p.heads + h) * d;
                int to = h / group * d * d;
                for (int i = 0; i < d; i++) {
                    float qi = p.x[q + i];
                    int j = 0;
                    for (; vector && j < SPECIES.loopBound(d); j += SPECIES.length()) {
                        FloatVector.fromArray(SPECIES, p.x, q + j)
                                .fma(
                                        FloatVector.broadcast(SPECIES, qi),
                                        FloatVector.fromArray(SPECIES, p.out, to + i * d + j))
                                .intoArray(p.out, to + i * d + j);
                    }
                    for (; j < d; j++) {
                        p.out[to + i * d + j] += qi * p.x[q + j];
                    }
                }
            }
        }
    }

    private static void gather(Problem p) {
        int row = p.kvHeads * p.dim;
        for (int c = 0; c < p.cells; c++) {
            for (int i = 0; i < p.dim; i++) {
                p.out[c * p.dim + i] = Float.float16ToFloat(p.half[p.index[c] * row + i]);
            }
        }
    }

    private static void spans(Problem p) {
        for (int h = 0; h < p.kvHeads; h++) {
            int start = -1;
            for (int i = h * p.cells + 4; i < h * p.cells + p.cells - 64; i++) {
                start = p.x[i] > 0.5f ? (start < 0 || i - start == 8 ? i : start) : -1;
                p.index[i] = start < 0 ? -1 : start - h * p.cells;
            }
        }
    }
}
