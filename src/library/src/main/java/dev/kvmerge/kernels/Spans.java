package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Runs of neighbours above a threshold. */
public final class Spans {
    private Spans() {}

    /**
     * Finds the runs among the values from {@code first} to before {@code end}.
     *
     * @return for each value the index of the first of its run; -1 where it is not above the threshold, or not looked
     *     at
     * @throws dev.kvmerge.KvmergeException if a value is NaN, or the range is not within the values
     */
    public static int[] find(float[] values, int first, int end, double threshold) {
        try (Arena local = Arena.ofConfined()) {
            MemorySegment span = local.allocate(ValueLayout.JAVA_INT, values.length);
            Kvmerge.check(Kvmerge_h.kvmerge_find_spans(
                    local.allocateFrom(ValueLayout.JAVA_FLOAT, values),
                    1,
                    values.length,
                    first,
                    end,
                    (float) threshold,
                    values.length, // no run is longer
                    span));
            return span.toArray(ValueLayout.JAVA_INT);
        }
    }
}
