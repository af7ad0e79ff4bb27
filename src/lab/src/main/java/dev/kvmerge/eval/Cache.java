package dev.kvmerge.eval;

import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.util.ArrayList;
import java.util.List;

/**
 * A cache to compare with others.
 *
 * @param compression share of the cells to save, 0 where everything is kept or the cells are given
 * @param kept cells that stay, whatever the text's length; 0 where they go by compression
 */
public record Cache(String name, Strategy strategy, double compression, int kept) {
    /** One whose cells are a share of the text's. */
    public Cache(String name, Strategy strategy, double compression) {
        this(name, strategy, compression, 0);
    }

    /** The full cache under a name, then each other strategy at each compression. */
    public static List<Cache> list(
            String full, List<String> specs, List<Double> compressions, Strategies.Settings settings) {
        List<Cache> caches = new ArrayList<>(List.of(new Cache(full, new Full(), 0)));
        for (double compression : compressions) {
            Experiment.cellsFor(1, compression); // a share out of range is refused even if nothing uses it
            add(caches, specs, compression, 0, settings);
        }
        return caches;
    }

    /** The full cache under a name, then each other strategy with each number of cells. */
    public static List<Cache> ofCells(
            String full, List<String> specs, List<Integer> cells, Strategies.Settings settings) {
        List<Cache> caches = new ArrayList<>(List.of(new Cache(full, new Full(), 0)));
        for (int kept : cells) {
            add(caches, specs, 0, kept, settings);
        }
        return caches;
    }

    private static void add(
            List<Cache> caches, List<String> specs, double compression, int kept, Strategies.Settings settings) {
        for (String spec : specs) {
            Strategy strategy = Strategies.create(spec, settings);
            if (!(strategy instanceof Full)) {
                caches.add(new Cache(Strategies.label(spec, strategy), strategy, compression, kept));
            }
        }
    }

    /** The strategy's parameters as text. */
    public String parameters() {
        return NotedParameters.of(strategy).toString();
    }

    /** Whether everything is kept. */
    public boolean isFull() {
        return strategy.keepsAll();
    }

    /** Cells that stay of a text's. */
    public int cells(int tokens) {
        return isFull() ? tokens : kept > 0 ? kept : Experiment.cellsFor(tokens, compression);
    }

    /** The share of a text's cells that it saves. */
    public double saved(int tokens) {
        return kept > 0 ? 1 - (double) kept / tokens : compression;
    }

    /** Refuses a text that leaves the strategy too few cells, or does not fill them. */
    public void check(int block, int tokens) {
        if (!isFull()) {
            Experiment.checkBudget(strategy, cells(tokens), block, tokens);
        }
    }
}
