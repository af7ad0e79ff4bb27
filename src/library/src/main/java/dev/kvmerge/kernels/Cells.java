package dev.kvmerge.kernels;

/**
 * Keys and values of some cells of a layer and KV head, in position order: as arrays, which are copies, or planned over
 * where they lie.
 */
public interface Cells {
    /** [cells][keyDimension] in one array; the same at every call. */
    float[] keys();

    /** [cells][valueDimension] in one array; the same at every call. */
    float[] values();

    /**
     * Which of the cells to drop and which to merge with their neighbours: the cheapest operation, again and again
     * (kvmerge_plan_groups in kvmerge.h has the prices).
     *
     * @param rate [cells], not negative: attention that a query is expected to give each cell
     * @param first cells [first, end) may be touched
     * @param operations 0 to end - first: each leaves a cell less
     * @param largestGroup most cells that become one
     * @param keyCost how much a distance between keys costs
     * @return [cells]: the first member of each cell's group, or -1 for a dropped one
     */
    int[] groups(double[] rate, int first, int end, int operations, int largestGroup, double keyCost);
}
