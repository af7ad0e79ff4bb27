package dev.kvmerge.kernels;

/**
 * The parameters of the planning that the native library does by itself, entropy-merged: see kvmerge_cache_params in
 * kvmerge.h.
 *
 * @param sinks first cells, never merged or dropped
 * @param recentShare share of the cells that the newest have for themselves, 0..1
 * @param largestGroup most cells that become one
 * @param keyCost how much a distance between keys costs
 */
public record EntropyMerging(int sinks, double recentShare, int largestGroup, double keyCost) {}
