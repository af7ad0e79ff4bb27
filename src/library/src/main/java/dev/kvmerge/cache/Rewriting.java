package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Shape;
import java.util.stream.IntStream;

/** Writes what plans make of the cells, through the observer. */
record Rewriting(Observer observer, Shape shape, Observer.CacheInfo info) {
    /**
     * Refuses values of another shape than the cells'.
     *
     * @param expected elements of the values of the cells in use
     */
    static void checkAdded(Shape shape, int pair, Plan plan, int expected) {
        if (plan.addedValues() != null && plan.addedValues().length != expected) {
            throw new KvmergeException("the strategy's plan for layer " + pair / shape.kvHeads() + ", KV head "
                    + pair % shape.kvHeads() + ": " + plan.addedValues().length
                    + " elements to add to the values where the cells have " + expected);
        }
    }

    /** Merges and moves. */
    void write(CellTable.Moves moves, boolean pivotFrame) {
        observer.apply(
                moves.targets(),
                moves.weights(),
                moves.valueWeights(),
                moves.positions(),
                moves.destinations(),
                moves.newPositions(),
                pivotFrame);
    }

    /** Adds what a plan adds to the values of the cells that stay. order: the cells as the plan knows them. */
    void addValues(int pair, Plan plan, int[] order, CellTable.Moves moves) {
        int dim = info.valueDimension();
        int base = pair * (moves.targets().length / shape.pairs());
        int[] staying = IntStream.range(0, order.length)
                .filter(i -> plan.target()[i] == i)
                .toArray();
        int[] cells = IntStream.of(staying)
                .map(i -> moves.destinations()[base + order[i]])
                .toArray();
        int layer = pair / shape.kvHeads();
        int head = pair % shape.kvHeads();
        float[] values = observer.readCells(layer, head, cells, info, new CellVectors.Buffer())
                .values()
                .clone();
        for (int c = 0; c < staying.length; c++) {
            for (int d = 0; d < dim; d++) {
                values[c * dim + d] += plan.addedValues()[staying[c] * dim + d];
            }
        }
        observer.writeValues(layer, head, cells, values, info);
    }
}
