package dev.kvmerge.kernels;

import dev.kvmerge.bindings.kvmerge_groups_params;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Keys and values of some cells of a layer and KV head, in position order: as arrays, which are copies, or planned over where they lie. */
public interface Cells {
    /** [cells][keyDimension] in one array; the same at every call. */
    float[] keys();

    /** [cells][valueDimension] in one array; the same at every call. */
    float[] values();

    /**
     * Which of the cells to drop and which to merge with their neighbours: the cheapest operation, again and again (kvmerge_plan_groups in kvmerge.h
     * has the prices).
     *
     * @param rate [cells], not negative: attention that a query is expected to give each cell
     * @param first cells [first, end) may be touched
     * @param operations 0 to end - first: each leaves a cell less
     * @param largestGroup most cells that become one
     * @param keyCost how much a distance between keys costs
     * @return [cells]: the first member of each cell's group, or -1 for a dropped one
     */
    int[] groups(double[] rate, int first, int end, int operations, int largestGroup, double keyCost);

    /** A native planning function, without the parameters that all have. */
    @FunctionalInterface
    interface Planning {
        /** Fills in what is missing from params, and calls it; a kvmerge_status. */
        int plan(Arena local, MemorySegment params, MemorySegment group);
    }

    /** Calls a native planning function. */
    static int[] groups(
            double[] rate, int first, int end, int operations, int largestGroup, double keyCost, Planning planning) {
        try (Arena local = Arena.ofConfined()) {
            MemorySegment params = kvmerge_groups_params.allocate(local);
            kvmerge_groups_params.n(params, rate.length);
            kvmerge_groups_params.first(params, first);
            kvmerge_groups_params.end(params, end);
            kvmerge_groups_params.operations(params, operations);
            kvmerge_groups_params.largest_group(params, largestGroup);
            kvmerge_groups_params.key_cost(params, keyCost);
            kvmerge_groups_params.rate(params, local.allocateFrom(ValueLayout.JAVA_DOUBLE, rate));
            MemorySegment group = local.allocate(ValueLayout.JAVA_INT, rate.length);
            Kvmerge.check(planning.plan(local, params, group));
            return group.toArray(ValueLayout.JAVA_INT);
        }
    }
}
