package dev.kvmerge.strategy;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.Plan;

/**
 * The cells whose keys point away from the others': least cosine similarity to the mean of the normalised keys; needs
 * no attention. Park et al. 2025, "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
 * Resource-Constrained Environments".
 */
public record KeyDiff() implements Strategy {
    @Override
    public String name() {
        return "keydiff";
    }

    @Override
    public Plan plan(CellStats cells, int budget) {
        int n = cells.size();
        float[] keys = cells.keys();
        int dim = keys.length / n;
        double[] inverseNorm = new double[n];
        double[] anchor = new double[dim];
        for (int i = 0; i < n; i++) {
            double squares = 0;
            for (int d = 0; d < dim; d++) {
                squares += (double) keys[i * dim + d] * keys[i * dim + d];
            }
            inverseNorm[i] = squares > 0 ? 1 / Math.sqrt(squares) : 0;
            for (int d = 0; d < dim; d++) {
                anchor[d] += keys[i * dim + d] * inverseNorm[i] / n;
            }
        }
        double[] similarity = new double[n]; // to the anchor, up to the anchor's own length
        for (int i = 0; i < n; i++) {
            for (int d = 0; d < dim; d++) {
                similarity[i] += keys[i * dim + d] * inverseNorm[i] * anchor[d];
            }
        }
        return Selection.keepLargestAndNewest(n, n - 1, budget, i -> -similarity[i]);
    }
}
