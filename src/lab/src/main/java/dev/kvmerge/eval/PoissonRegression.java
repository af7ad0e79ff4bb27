package dev.kvmerge.eval;

import java.util.Arrays;

/**
 * Poisson regression with a logarithmic link: y is exp(w_0 + w . x) in the mean, y never negative and not necessarily
 * whole. By Newton's method on the quasi-likelihood, with a ridge on the weights of the standardised features
 * (McCullagh and Nelder, Generalized Linear Models, 1989, ch. 6 and 9).
 */
final class PoissonRegression {
    private static final double RIDGE = 0.1;
    private static final int MOST_STEPS = 20;
    private static final double LARGEST = 12; // of an exponent, while the weights are far off

    private final float[][] z; // standardised
    private final double[] y; // mean 1
    private final int features;

    private PoissonRegression(float[][] z, double[] y) {
        this.z = z;
        this.y = y;
        this.features = z[0].length;
    }

    /**
     * Fits.
     *
     * @param x [samples][features]; standardised in place
     * @param y [samples], not negative
     * @return w_0 and the weights of the features; where nothing is ever received, a constant far below all
     */
    static double[] fit(float[][] x, float[] y) {
        int n = x.length;
        int features = x[0].length;
        double[] result = new double[features + 1];
        double scale = 0;
        for (float v : y) {
            scale += v / n;
        }
        if (scale == 0) {
            result[0] = -50;
            return result;
        }
        double[] mean = new double[features];
        double[] deviation = new double[features];
        for (float[] row : x) {
            for (int j = 0; j < features; j++) {
                mean[j] += row[j] / (double) n;
            }
        }
        for (float[] row : x) {
            for (int j = 0; j < features; j++) {
                deviation[j] += (row[j] - mean[j]) * (row[j] - mean[j]) / n;
            }
        }
        for (int j = 0; j < features; j++) {
            deviation[j] = Math.sqrt(deviation[j]) + 1e-6;
        }
        for (float[] row : x) {
            for (int j = 0; j < features; j++) {
                row[j] = (float) ((row[j] - mean[j]) / deviation[j]);
            }
        }
        double[] unit = new double[n];
        for (int i = 0; i < n; i++) {
            unit[i] = y[i] / scale;
        }
        double[] w = new PoissonRegression(x, unit).solve(); // the constant is the last
        result[0] = w[features] + Math.log(scale);
        for (int j = 0; j < features; j++) {
            result[j + 1] = w[j] / deviation[j];
            result[0] -= result[j + 1] * mean[j];
        }
        return result;
    }

    private double[] solve() {
        double[] w = new double[features + 1];
        double loss = loss(w);
        for (int step = 0; step < MOST_STEPS; step++) {
            double[] direction = direction(w);
            double length = 1;
            double[] next;
            double lower;
            do {
                next = w.clone();
                for (int j = 0; j < next.length; j++) {
                    next[j] -= length * direction[j];
                }
                lower = loss(next);
                length /= 2;
            } while (!(lower < loss) && length > 1e-4);
            if (!(lower < loss)) {
                break;
            }
            w = next;
            if (loss - lower < 1e-6 * Math.abs(loss)) {
                break;
            }
            loss = lower;
        }
        return w;
    }

    private double exponent(double[] w, int sample) {
        double e = w[features];
        for (int j = 0; j < features; j++) {
            e += w[j] * z[sample][j];
        }
        return Math.min(e, LARGEST);
    }

    /** Negative quasi-likelihood a sample. */
    private double loss(double[] w) {
        double sum = 0;
        for (int i = 0; i < z.length; i++) {
            double e = exponent(w, i);
            sum += Math.exp(e) - y[i] * e;
        }
        double ridge = 0;
        for (int j = 0; j < features; j++) {
            ridge += w[j] * w[j];
        }
        return sum / z.length + RIDGE / 2 * ridge;
    }

    /** The inverse of the second derivatives times the first ones. */
    private double[] direction(double[] w) {
        int k = features + 1;
        double[] gradient = new double[k];
        double[][] hessian = new double[k][k];
        double[] row = new double[k];
        row[features] = 1;
        for (int i = 0; i < z.length; i++) {
            for (int j = 0; j < features; j++) {
                row[j] = z[i][j];
            }
            double mean = Math.exp(exponent(w, i)) / z.length;
            double error = mean - y[i] / z.length;
            for (int a = 0; a < k; a++) {
                gradient[a] += error * row[a];
                double[] h = hessian[a];
                double scaled = mean * row[a];
                for (int b = 0; b <= a; b++) {
                    h[b] += scaled * row[b];
                }
            }
        }
        for (int j = 0; j < features; j++) {
            gradient[j] += RIDGE * w[j];
            hessian[j][j] += RIDGE;
        }
        hessian[features][features] += 1e-9;
        return solve(hessian, gradient);
    }

    /**
     * Solves A x = b by Cholesky's decomposition; A is symmetric and positive definite, its lower half is read and
     * overwritten.
     */
    private static double[] solve(double[][] a, double[] b) {
        int k = b.length;
        double[] x = Arrays.copyOf(b, k);
        for (int i = 0; i < k; i++) {
            for (int j = 0; j <= i; j++) {
                double sum = a[i][j];
                for (int m = 0; m < j; m++) {
                    sum -= a[i][m] * a[j][m];
                }
                a[i][j] = i == j ? Math.sqrt(Math.max(sum, 1e-300)) : sum / a[j][j];
            }
            for (int m = 0; m < i; m++) {
                x[i] -= a[i][m] * x[m];
            }
            x[i] /= a[i][i];
        }
        for (int i = k - 1; i >= 0; i--) {
            for (int m = i + 1; m < k; m++) {
                x[i] -= a[m][i] * x[m];
            }
            x[i] /= a[i][i];
        }
        return x;
    }
}
