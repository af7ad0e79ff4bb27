package dev.kvmerge.kernels;

/** How a merged cell gets the log of the attention mass that its members had (the Gibbs bias; docs/architecture.md). */
public enum Bias {
    /** It does not: the merged cell counts as one token. */
    NONE,
    /** Folded into its key along the queries' common direction. The graph is untouched. */
    FOLDED,
    /** Added to its attention scores in the eval callback. Exact; needs flash attention off. */
    EXACT
}
