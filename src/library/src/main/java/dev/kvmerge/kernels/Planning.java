package dev.kvmerge.kernels;

import dev.kvmerge.bindings.kvmerge_groups_params;
import dev.kvmerge.llama.NativeLibrary;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** A native planning function, without the parameters that all have. */
@FunctionalInterface
interface Planning {
    /** Fills in what is missing from params, and calls it; a kvmerge_status. */
    int plan(Arena local, MemorySegment params, MemorySegment group);

    /** Calls it for so many cells; the rest is {@link Cells#groups}'. */
    default int[] groups(
            int cells, double[] rate, int first, int end, int operations, int largestGroup, double keyCost) {
        if (rate.length != cells) {
            throw new IllegalArgumentException(rate.length + " rates of " + cells + " cells");
        }
        NativeLibrary.require();
        try (Arena local = Arena.ofConfined()) {
            MemorySegment params = kvmerge_groups_params.allocate(local);
            kvmerge_groups_params.n(params, cells);
            kvmerge_groups_params.first(params, first);
            kvmerge_groups_params.end(params, end);
            kvmerge_groups_params.operations(params, operations);
            kvmerge_groups_params.largest_group(params, largestGroup);
            kvmerge_groups_params.key_cost(params, keyCost);
            kvmerge_groups_params.rate(params, local.allocateFrom(ValueLayout.JAVA_DOUBLE, rate));
            MemorySegment group = local.allocate(ValueLayout.JAVA_INT, cells);
            Kvmerge.check(plan(local, params, group));
            return group.toArray(ValueLayout.JAVA_INT);
        }
    }
}
