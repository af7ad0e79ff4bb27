package dev.kvmerge.strategy;

/** Arithmetic on rows of [n][dim] arrays. */
final class Vectors {
    private Vectors() {}

    static double dot(float[] x, int a, float[] y, int b, int dim) {
        double sum = 0;
        for (int i = 0; i < dim; i++) {
            sum += x[a * dim + i] * y[b * dim + i];
        }
        return sum;
    }

    static double norm(float[] x, int a, int dim) {
        return Math.sqrt(dot(x, a, x, a, dim));
    }

    /** A copy whose rows have length 1; rows of length 0 stay. */
    static float[] normalised(float[] x, int dim) {
        float[] unit = x.clone();
        for (int row = 0; row < x.length / dim; row++) {
            double norm = norm(x, row, dim);
            for (int i = 0; i < dim && norm > 0; i++) {
                unit[row * dim + i] /= (float) norm;
            }
        }
        return unit;
    }
}
