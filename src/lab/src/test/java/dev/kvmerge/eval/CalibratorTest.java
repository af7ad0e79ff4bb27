package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What a calibration is fitted to. */
@Tag("fast")
class CalibratorTest {
    @Test
    void eachPieceCountsAlike() {
        float[] quiet = {1, 3};
        float[] loud = {100, 300};
        assertArrayEquals(new float[] {50.5f, 151.5f, 50.5f, 151.5f}, Calibrator.targets(List.of(quiet, loud)), 1e-4f);
    }

    @Test
    void noTokenCountsForMoreThanTenMeansOfItsPiece() {
        float[] piece = new float[100];
        Arrays.fill(piece, 1);
        piece[7] = 901; // the mean is 10
        float[] targets = Calibrator.targets(List.of(piece));
        assertEquals(100, targets[7], 1e-4);
        assertEquals(1, targets[8], 1e-6);
    }

    @Test
    void aPieceThatNobodyAttendsToIsZeroAndTakesNothingFromTheOthersOrder() {
        float[] targets = Calibrator.targets(List.of(new float[2], new float[] {2, 6}));
        assertArrayEquals(new float[] {0, 0, 1, 3}, targets, 1e-6f);
    }

    @Test
    void nothingAnywhereIsNothing() {
        assertArrayEquals(new float[4], Calibrator.targets(List.of(new float[2], new float[2])));
    }
}
