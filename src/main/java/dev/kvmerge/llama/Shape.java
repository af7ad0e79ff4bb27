package dev.kvmerge.llama;

/**
 * The attention's shape, the same in every layer.
 *
 * @param layers layers with a KV cache
 * @param heads query heads a layer
 * @param kvHeads KV heads a layer; divides heads
 */
public record Shape(int layers, int heads, int kvHeads) {
    public Shape {
        if (layers <= 0 || kvHeads <= 0 || heads <= 0 || heads % kvHeads != 0) {
            throw new IllegalArgumentException(
                    "not an attention shape: " + layers + " layers, " + heads + " heads on " + kvHeads);
        }
    }

    /** Query heads that share a KV head. */
    public int group() {
        return heads / kvHeads;
    }

    /** Number of (layer, KV head) pairs; the pair's index is layer * kvHeads + kvHead. */
    public int pairs() {
        return layers * kvHeads;
    }
}
