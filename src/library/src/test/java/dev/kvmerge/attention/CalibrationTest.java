package dev.kvmerge.attention;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("native")
class CalibrationTest {
    private static final float[] WEIGHTS = {-1, .5f, .25f, -.125f, -.3f, .7f, 2, -3};

    @BeforeAll
    static void library() {
        TestModel.loadKernels();
    }

    @Test
    void foreseesByItsFormula() {
        Calibration calibration = new Calibration("c", 2, 1, 2, 0.9, 1, new float[][] {WEIGHTS, new float[8]});
        assertArrayEquals(new float[] {2, -3}, calibration.keyWeights(0));
        float[] prior = calibration.prior(0, new float[] {2 - 6, 1 + 3, 0}, new float[] {5, 0, 13});
        assertEquals(-1 + .7 * Math.log(5 + 1e-3) + 2 - 6, prior[0], 1e-5);
        assertEquals(-1 + .7 * Math.log(1e-3) + 1 + 3, prior[1], 1e-5);
        float[] mass = {6, 1, 2};
        float[] exposure = {3, 2, 1};
        CellStats cells = new CellStats(
                0, 0, new int[] {4, 6, 9}, mass, exposure, new float[3], new int[] {1, 1, 1}, prior, null, null);
        double[] log = {Math.log(2 + 1e-6), Math.log(.5 + 1e-6), Math.log(2 + 1e-6)};
        double[] age = {Math.log(6), Math.log(4), Math.log(1)};
        double[] expected = new double[3];
        for (int i = 0; i < 3; i++) {
            double before = log[i == 0 ? 0 : i - 1];
            double after = log[i == 2 ? 2 : i + 1];
            expected[i] = Math.exp(prior[i] + .5 * log[i] + .25 * before - .125 * after - .3 * age[i]);
        }
        assertArrayEquals(expected, calibration.expected(cells, new double[] {2, .5, 2}), 1e-6);
        assertThrows(IllegalArgumentException.class, () -> calibration.expected(cells, new double[] {2, .5}));
        assertThrows(KvmergeException.class, () -> calibration.expected(cells, new double[] {2, Double.NaN, 2}));
    }

    @Test
    void refusesWhatIsNotWhole() {
        float[][] one = {WEIGHTS};
        assertTrue(assertThrows(KvmergeException.class, () -> new Calibration("c", 2, 1, 2, 0.9, 1, one))
                .getMessage()
                .contains("each of 2 layers"));
        float[] broken = WEIGHTS.clone();
        broken[3] = Float.NaN;
        assertThrows(KvmergeException.class, () -> new Calibration("c", 1, 1, 2, 0.9, 1, new float[][] {broken}));
        assertThrows(KvmergeException.class, () -> new Calibration("c", 1, 1, 3, 0.9, 1, one));
        assertThrows(
                KvmergeException.class, () -> new Calibration("c", 0, 0, 2, 0.9, 1, one), "of no model, with keys");
        assertThrows(KvmergeException.class, () -> new Calibration("c", 1, 1, 2, 0.9, 3, one));
        Calibration fine = new Calibration("c", 1, 1, 2, 0.9, 1, one);
        fine.check(1, 1);
        assertTrue(assertThrows(KvmergeException.class, () -> fine.check(30, 3))
                .getMessage()
                .contains("--calibration none"));
        fine.checkKeys(2);
        assertTrue(assertThrows(KvmergeException.class, () -> fine.checkKeys(64))
                .getMessage()
                .contains("keys of 2 elements"));
    }
}
