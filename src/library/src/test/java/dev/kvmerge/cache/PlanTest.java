package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("fast")
class PlanTest {
    @Test
    void theBuilderMergesAroundTheHeaviest() {
        Plan plan = Plan.builder(5)
                .evict(0)
                .merge(new int[] {1, 2, 3}, new double[] {1, 2, 1})
                .build();
        assertArrayEquals(new int[] {-1, 2, 2, 2, 4}, plan.target());
        assertArrayEquals(new float[] {1, .25f, .5f, .25f, 1}, plan.weight());
        assertEquals(2, plan.groups());
        plan.check(5, 2);
    }

    @Test
    void nobodyAttendedCountsAsAllAlike() {
        Plan plan = Plan.builder(3).merge(new int[] {0, 1}, new double[] {0, 0}).build();
        assertArrayEquals(new float[] {.5f, .5f, 1}, plan.weight());
    }

    @Test
    void massesThatAreNoneAreRefused() {
        for (double mass : new double[] {Double.NaN, -1, Double.POSITIVE_INFINITY}) {
            IllegalArgumentException e = assertThrows(IllegalArgumentException.class, () -> Plan.builder(3)
                    .merge(new int[] {0, 1}, new double[] {1, mass}));
            assertTrue(e.getMessage().contains("cell 1"), e.getMessage());
        }
        assertThrows(IllegalArgumentException.class, () -> Plan.builder(3).merge(new int[] {0, 1}, new double[] {1}));
    }

    @Test
    void aWrongPlanSaysWhatIsWrong() {
        refused(new Plan(new int[] {0, 1}, new float[] {1, 1}), 3, 2, "where there are 3");
        refused(new Plan(new int[] {1, 2, 2}, new float[] {1, 1, 1}), 3, 1, "not a pivot");
        refused(new Plan(new int[] {1, 1, 2}, new float[] {.5f, .2f, 1}), 3, 2, "sum to");
        refused(new Plan(new int[] {1, 1, 2}, new float[] {Float.NaN, 1, 1}), 3, 2, "weight NaN");
        refused(Plan.keepAll(3).withAddedValues(new float[] {0, 0, 0, Float.NaN, 0, 0}), 3, 3, "not finite");
        refused(Plan.keepAll(3).withAddedValues(new float[4]), 3, 3, "4 elements to add");
        refused(new Plan(new int[] {0, 1, -1}, new float[] {1, 1, 1}), 3, 2, "newest cell must stay");
        refused(new Plan(new int[] {0, 2, 2}, new float[] {1, .5f, .5f}), 3, 2, "newest cell must stay");
        refused(Plan.keepAll(3), 3, 2, "leaves 3 cells where the budget is 2");
    }

    private static void refused(Plan plan, int cells, int budget, String why) {
        IllegalStateException e = assertThrows(IllegalStateException.class, () -> plan.check(cells, budget));
        assertTrue(e.getMessage().contains(why), e.getMessage());
    }
}
