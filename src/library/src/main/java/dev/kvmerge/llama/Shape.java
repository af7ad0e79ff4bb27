package dev.kvmerge.llama;

import java.util.List;
import java.util.stream.IntStream;

/**
 * The shape of the attention that can be compressed, the same in every layer. Layers count along {@code layerNumbers}.
 *
 * @param layerNumbers the model's numbers of the layers that attend to everything, ascending; those with sliding
 *     windows are left out
 * @param heads query heads a layer
 * @param kvHeads KV heads a layer; divides heads
 */
public record Shape(List<Integer> layerNumbers, int heads, int kvHeads) {
    public Shape {
        layerNumbers = List.copyOf(layerNumbers);
        if (layerNumbers.isEmpty() || kvHeads <= 0 || heads <= 0 || heads % kvHeads != 0) {
            throw new IllegalArgumentException(
                    "not an attention shape: layers " + layerNumbers + ", " + heads + " heads on " + kvHeads);
        }
    }

    /** Of a model whose every layer attends to everything. */
    public static Shape of(int layers, int heads, int kvHeads) {
        return new Shape(IntStream.range(0, layers).boxed().toList(), heads, kvHeads);
    }

    /** Layers that are compressed. */
    public int layers() {
        return layerNumbers.size();
    }

    /** Query heads that share a KV head. */
    public int headsPerKvHead() {
        return heads / kvHeads;
    }

    /** Number of (layer, KV head) pairs; the pair's index is layer * kvHeads + kvHead. */
    public int pairs() {
        return layers() * kvHeads;
    }
}
