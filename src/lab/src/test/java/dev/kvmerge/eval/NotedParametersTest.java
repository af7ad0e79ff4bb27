package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;

import dev.kvmerge.attention.Calibration;
import dev.kvmerge.strategy.EntropyMerged;
import dev.kvmerge.strategy.H2o;
import dev.kvmerge.strategy.QuantisedCells;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What results say of a method, and so what tells runs of one name apart. */
@Tag("fast")
class NotedParametersTest {
    private static EntropyMerged foreseeing(float weight) {
        return new EntropyMerged(new Calibration(
                "alice: 4 x 512 tokens", 1, 1, 2, 0.9, 1.5, new float[][] {{weight, 0, 0, 0, 0, 0, 0, 0}}));
    }

    @Test
    void calibrationsOfOneNameAreNotTheSame() {
        EntropyMerged one = foreseeing(1);
        EntropyMerged other = foreseeing(2);
        assertEquals(one.parameters(), other.parameters(), "by their names they are");
        assertNotEquals(NotedParameters.of(one), NotedParameters.of(other));
        assertEquals(NotedParameters.of(one), NotedParameters.of(foreseeing(1)));
        assertEquals("alice: 4 x 512 tokens", NotedParameters.of(one).get("calibration"));
        assertEquals(one.needs().calibration().digest(), NotedParameters.of(one).get("calibrationDigest"));
        assertNotEquals(new Cache("c", one, 0.5).parameters(), new Cache("c", other, 0.5).parameters());
        assertNotEquals(new Facts.Asked("c", one, 9).parameters(), new Facts.Asked("c", other, 9).parameters());
        assertNotEquals(run(one).parameters(), run(other).parameters());
    }

    private static Experiment.Run run(EntropyMerged method) {
        return new Experiment.Run("c", "c", "c", method, 0.5, 9, null, null);
    }

    @Test
    void otherMethodsHaveWhatTheyHad() {
        assertEquals(new EntropyMerged().parameters(), NotedParameters.of(new EntropyMerged()));
        assertEquals(new H2o(0.5).parameters(), NotedParameters.of(new H2o(0.5)));
        assertEquals(new QuantisedCells().parameters(), NotedParameters.of(new QuantisedCells()));
    }
}
