package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Cells;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Shape;
import java.util.Arrays;
import java.util.function.Function;
import java.util.function.Supplier;

/**
 * What every cell holds, for each layer and KV head: llama.cpp's own record of a cell (one position, the same for all heads) stops
 * being true once heads keep different tokens. No native code: the bookkeeping alone.
 *
 * <p>The cells that stay are 0 .. budget-2 and the newest token's own, so that llama.cpp refills the ones behind them and its attention
 * stays short. In a model with sliding windows they are those of the newest positions: llama.cpp frees a position in all layers at once,
 * and the layers with windows need theirs.
 */
final class CellTable {
    /** For {@link #targets} of a cell that is dropped or was not in use. */
    static final int NONE = -1;

    private final Shape shape;
    private final int cells;
    private final int[] position; // [pair][cell], in the text
    private final int[] frame; // the position whose rotation the key carries: another only in a context with a span
    private final float[] mass;
    private final float[] exposure; // queries that could attend to the cell, decayed as its mass is
    private final float[] entropy;
    private final int[] count;
    private final float[] prior;
    private final int[] order; // [pair][0..used): cells in position order
    private final int[] targets; // of Moves, made once: they are large
    private final float[] weights;
    private final int[] positions;
    private final int[] destinations;
    private final boolean keepsNewest;
    private int[] held = {}; // the cells in use, in the order of the positions that llama.cpp knows them by
    private int used;

    /**
     * An empty table.
     *
     * @param keepsNewest whether the cells that stay are those of the newest positions
     */
    CellTable(Shape shape, int cells, boolean keepsNewest) {
        this.keepsNewest = keepsNewest;
        this.shape = shape;
        this.cells = cells;
        int n = Math.multiplyExact(shape.pairs(), cells);
        position = new int[n];
        frame = new int[n];
        mass = new float[n];
        exposure = new float[n];
        entropy = new float[n];
        count = new int[n];
        prior = new float[n];
        order = new int[n];
        targets = new int[n];
        weights = new float[n];
        positions = new int[n];
        destinations = new int[n];
    }

    int used() {
        return used;
    }

    /**
     * A block was decoded: its tokens took these cells, at consecutive positions from the first.
     *
     * @param firstFrame the position that llama.cpp was told of the first
     * @param priors [pair][token], what a calibration says of the tokens; null for none
     */
    void add(
            int[] tokenCell,
            int firstPosition,
            int firstFrame,
            Observer.Stats stats,
            float[][] priors,
            double massDecay) {
        int tokens = tokenCell.length;
        for (int i = 0; i < exposure.length; i++) {
            exposure[i] = (float) (exposure[i] * massDecay + tokens);
        }
        for (int pair = 0; pair < shape.pairs(); pair++) {
            int base = pair * cells;
            for (int t = 0; t < tokens; t++) {
                int cell = base + tokenCell[t];
                position[cell] = firstPosition + t;
                frame[cell] = firstFrame + t;
                count[cell] = 1;
                prior[cell] = priors == null ? 0 : priors[pair][t];
                mass[cell] = 0;
                exposure[cell] = tokens - t;
                entropy[cell] = stats.entropy() == null ? 0 : tokenEntropy(stats.entropy(), pair, t, tokens);
                order[base + used + t] = tokenCell[t];
            }
        }
        used += tokens;
        int before = held.length;
        held = Arrays.copyOf(held, before + tokens);
        System.arraycopy(tokenCell, 0, held, before, tokens);
        if (stats.mass() != null) {
            for (int i = 0; i < mass.length; i++) {
                mass[i] = (float) (mass[i] * massDecay + stats.mass()[i]);
            }
        }
    }

    /** Mean over the KV head's query heads. */
    private float tokenEntropy(float[] entropies, int pair, int token, int tokens) {
        int layer = pair / shape.kvHeads();
        int firstHead = layer * shape.heads() + (pair % shape.kvHeads()) * shape.group();
        float sum = 0;
        for (int h = 0; h < shape.group(); h++) {
            sum += entropies[(firstHead + h) * tokens + token];
        }
        return sum / shape.group();
    }

    /** The cells of a layer and KV head, oldest position first. */
    int[] order(int pair) {
        return Arrays.copyOfRange(order, pair * cells, pair * cells + used);
    }

    /**
     * What a planner sees of one layer and KV head; {@code source} gives the keys and values
     * of cells; null where nobody asks.
     */
    CellStats stats(int pair, Function<int[], Cells> source, Supplier<Observer.QueryMoments> queries) {
        int[] at = order(pair);
        int n = at.length;
        int[] positions = new int[n];
        float[] masses = new float[n];
        float[] exposures = new float[n];
        float[] entropies = new float[n];
        int[] counts = new int[n];
        float[] priors = new float[n];
        for (int i = 0; i < n; i++) {
            int cell = pair * cells + at[i];
            positions[i] = position[cell];
            masses[i] = mass[cell];
            exposures[i] = exposure[cell];
            entropies[i] = entropy[cell];
            counts[i] = count[cell];
            priors[i] = prior[cell];
        }
        return new CellStats(
                pair / shape.kvHeads(),
                pair % shape.kvHeads(),
                positions,
                masses,
                exposures,
                entropies,
                counts,
                priors,
                source == null ? null : source.apply(at),
                queries);
    }

    /** What to write where, for every layer and KV head, in kvmerge_plan's terms: [pair][cell]. */
    record Moves(
            int[] targets,
            float[] weights,
            float[] valueWeights,
            int[] positions,
            int[] destinations,
            int[] newPositions) {}

    /**
     * Takes the plans of all pairs and moves the table to what the cells will be.
     *
     * @param plans one a pair, all of which have passed {@link #check}
     * @param budget cells that stay
     * @param back positions that every key is rotated back by, but that those which come to the start get 0, 1, 2, ...; llama.cpp rotates
     *     the newest cell itself
     * @return what the native side has to do; its arrays are the table's, until the next call
     */
    Moves apply(Plan[] plans, int budget, int back) {
        boolean weighted = Arrays.stream(plans).anyMatch(plan -> plan.valueWeight() != null);
        Moves moves = new Moves(
                targets,
                weights,
                weighted ? new float[position.length] : null,
                positions,
                destinations,
                back > 0 ? new int[position.length] : null);
        held = staying(budget);
        boolean[] stays = new boolean[cells];
        for (int cell : held) {
            stays[cell] = true;
        }
        Parallel.each( // each has its own part of every array
                plans.length, pair -> applyPair(pair, plans[pair], stays, budget, back, moves));
        used = budget;
        return moves;
    }

    /** The cells that llama.cpp keeps, in the order of its positions. */
    private int[] staying(int budget) {
        if (keepsNewest) {
            return Arrays.copyOfRange(held, used - budget, used);
        }
        int[] staying = new int[budget];
        Arrays.setAll(staying, c -> c);
        staying[budget - 1] = held[used - 1];
        return staying;
    }

    /** Throws a KvmergeException naming the layer and KV head of a plan that breaks the rules. */
    void check(int pair, Plan plan, int budget) {
        try {
            if (plan == null) {
                throw new IllegalStateException("is null");
            }
            plan.check(used, budget);
        } catch (IllegalStateException e) {
            throw new KvmergeException(
                    "the strategy's plan for layer " + pair / shape.kvHeads() + ", KV head " + pair % shape.kvHeads()
                            + ": " + e.getMessage(),
                    e);
        }
    }

    private void applyPair(int pair, Plan plan, boolean[] stays, int budget, int back, Moves moves) {
        int base = pair * cells;
        Arrays.fill(targets, base, base + cells, NONE);
        System.arraycopy(frame, base, positions, base, cells);
        int[] newPositions = moves.newPositions();
        if (newPositions != null) {
            System.arraycopy(frame, base, newPositions, base, cells);
        }
        float[] valueWeights = moves.valueWeights();
        int[] at = order(pair);
        int newest = at[used - 1];
        int[] target = plan.target();
        float[] weight = plan.weight();
        float[] valueWeight = plan.valueWeight() == null ? weight : plan.valueWeight();
        // Pivots that already lie in a cell that stays, stay in it; the others take the free ones in order.
        boolean[] taken = new boolean[cells];
        for (int i = 0; i < used; i++) {
            if (target[i] == i) {
                taken[at[i]] = stays[at[i]];
                if (weight[i] != 1) { // the rest comes from its members
                    entropy[base + at[i]] *= weight[i];
                    prior[base + at[i]] *= weight[i];
                }
            }
        }
        for (int i = 0; i < used; i++) {
            if (target[i] == Plan.EVICTED) {
                continue;
            }
            int cell = base + at[i];
            targets[cell] = at[target[i]];
            weights[cell] = weight[i];
            if (valueWeights != null) {
                valueWeights[cell] = valueWeight[i];
            }
            if (target[i] != i) {
                int pivot = base + at[target[i]];
                mass[pivot] += mass[cell];
                entropy[pivot] += weight[i] * entropy[cell];
                count[pivot] += count[cell];
                prior[pivot] += weight[i] * prior[cell];
            }
        }
        int free = 0;
        int group = 0;
        for (int i = 0; i < used; i++) {
            if (target[i] != i) {
                continue;
            }
            int from = base + at[i];
            int to = at[i];
            if (!stays[to]) {
                while (taken[free] || !stays[free]) {
                    free++;
                }
                taken[free] = true;
                to = free;
            }
            destinations[from] = to;
            order[base + group] = to;
            to += base;
            frame[to] = Math.max(group, frame[from] - back);
            if (to != from) {
                position[to] = position[from];
                mass[to] = mass[from];
                exposure[to] = exposure[from];
                entropy[to] = entropy[from];
                count[to] = count[from];
                prior[to] = prior[from];
            }
            if (newPositions != null && at[i] != newest) {
                newPositions[from] = frame[to];
            }
            group++;
        }
    }
}
