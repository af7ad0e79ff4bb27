package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class PoissonRegressionTest {
    @Test
    void findsWhatTheDataWereMadeFrom() {
        Random random = new Random(1);
        int n = 20_000;
        double[] w = {-3, .4, -.25, 0};
        float[][] x = new float[n][3];
        float[] y = new float[n];
        for (int i = 0; i < n; i++) {
            double e = w[0];
            for (int j = 0; j < 3; j++) {
                x[i][j] = (float) (5 * j + random.nextGaussian() * (j + 1));
                e += w[j + 1] * x[i][j];
            }
            y[i] = (float) (Math.exp(e) * 2 * random.nextDouble()); // the mean is right, the noise is not Poisson's
        }
        double mean = 0;
        for (float v : y) {
            mean += v / n;
        }
        float[][] seen = new float[n][];
        for (int i = 0; i < n; i++) {
            seen[i] = x[i].clone();
        }
        double[] found = PoissonRegression.fit(x, y);
        // The ridge pulls towards 0: a tenth of the second derivative, which is near 1 where the mean is.
        assertEquals(.4, found[1], .06);
        assertEquals(-.25, found[2], .04);
        assertEquals(0, found[3], .01);
        double predicted = 0;
        for (float[] row : seen) {
            double e = found[0];
            for (int j = 0; j < 3; j++) {
                e += found[j + 1] * row[j];
            }
            predicted += Math.exp(e) / n;
        }
        assertEquals(1, predicted / mean, 1e-3, "the constant is not pulled: the mean is kept");
    }

    @Test
    void whereNothingIsEverReceivedNothingIsExpected() {
        double[] w = PoissonRegression.fit(new float[][] {{1, 2}, {3, 4}}, new float[2]);
        assertTrue(w[0] < -30);
        assertEquals(0, w[1]);
    }
}
