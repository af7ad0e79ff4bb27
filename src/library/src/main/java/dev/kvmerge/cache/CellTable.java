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
 * What every cell holds, for each layer and KV head: llama.cpp's own record of a cell (one position, the same for all
 * heads) stops being true once heads keep different tokens. No native code: the bookkeeping alone.
 *
 * <p>The cells that stay are 0 .. budget-2 and the one of llama.cpp's newest position, so that llama.cpp refills the
 * ones behind them and its attention stays short. In a model with sliding windows they are those of the newest
 * positions: llama.cpp frees a position in all layers at once, and the layers with windows need theirs.
 */
final class CellTable {
    /** For {@link #targets} of a cell that is dropped or was not in use. */
    static final int NONE = -1;

    /** Bytes of heap that an entry takes: its columns now and next, and its moves. */
    static final int ENTRY_BYTES = 2 * 8 * 4 + 4 * 4;

    private final Shape shape;
    private final int cells;
    private final int[] targets; // of Moves, made once: they are large
    private final float[] weights;
    private final int[] positions;
    private final int[] destinations;
    private final boolean keepsNewest;
    private Columns now;
    private Columns next; // what a rewrite makes of them
    private int[] held = {}; // the cells in use, in the order of the positions that llama.cpp knows them by
    private int used;

    /**
     * What is known of the cells in use, [pair][0..used) in position order.
     *
     * @param cell its number
     * @param position in the text
     * @param frame the position whose rotation the key carries: another only in a context with a position range
     * @param exposure queries that could attend to the cell, decayed as its mass is
     */
    private record Columns(
            int[] cell,
            int[] position,
            int[] frame,
            float[] mass,
            float[] exposure,
            float[] entropy,
            int[] count,
            float[] prior) {
        Columns(int n) {
            this(
                    new int[n],
                    new int[n],
                    new int[n],
                    new float[n],
                    new float[n],
                    new float[n],
                    new int[n],
                    new float[n]);
        }
    }

    /**
     * An empty table.
     *
     * @param keepsNewest whether the cells that stay are those of the newest positions
     */
    CellTable(Shape shape, int cells, boolean keepsNewest) {
        this.keepsNewest = keepsNewest;
        this.shape = shape;
        this.cells = cells;
        int n = Math.toIntExact(entries(shape, cells)); // CompressedContext has seen that it is one
        now = new Columns(n);
        next = new Columns(n);
        targets = new int[n];
        weights = new float[n];
        positions = new int[n];
        destinations = new int[n];
    }

    /** Entries of each column: one a layer, KV head and cell. */
    static long entries(Shape shape, int cells) {
        return (long) shape.pairs() * cells;
    }

    int used() {
        return used;
    }

    /** What its arrays take of the heap. */
    long bytes() {
        int columns = 2 * Columns.class.getRecordComponents().length;
        return 4L * entries(shape, cells) * (columns + 4);
    }

    /**
     * A block was decoded: its tokens took these cells, at consecutive positions from the first.
     *
     * @param firstFrame the position that llama.cpp was told of the first
     */
    void add(int[] tokenCell, int firstPosition, int firstFrame, Observer.Stats stats, double massDecay) {
        int tokens = tokenCell.length;
        for (int pair = 0; pair < shape.pairs(); pair++) {
            int base = pair * cells;
            for (int i = base; i < base + used; i++) {
                now.exposure[i] = (float) (now.exposure[i] * massDecay + tokens);
            }
            for (int t = 0; t < tokens; t++) {
                int i = base + used + t;
                now.cell[i] = tokenCell[t];
                now.position[i] = firstPosition + t;
                now.frame[i] = firstFrame + t;
                now.mass[i] = 0;
                now.exposure[i] = tokens - t;
                now.entropy[i] = stats.entropy() == null ? 0 : tokenEntropy(stats.entropy(), pair, t, tokens);
                now.count[i] = 1;
                now.prior[i] = 0;
            }
            for (int i = base; stats.mass() != null && i < base + used + tokens; i++) {
                now.mass[i] = (float) (now.mass[i] * massDecay + stats.mass()[base + now.cell[i]]);
            }
        }
        int before = held.length;
        held = Arrays.copyOf(held, before + tokens);
        System.arraycopy(tokenCell, 0, held, before, tokens);
        used += tokens;
    }

    /** What a calibration says of a pair's newest tokens; until then, 0. */
    void foresee(int pair, float[] priors) {
        System.arraycopy(priors, 0, now.prior, pair * cells + used - priors.length, priors.length);
    }

    /** Mean over the KV head's query heads. */
    private float tokenEntropy(float[] entropies, int pair, int token, int tokens) {
        int layer = pair / shape.kvHeads();
        int firstHead = layer * shape.heads() + (pair % shape.kvHeads()) * shape.headsPerKvHead();
        float sum = 0;
        for (int h = 0; h < shape.headsPerKvHead(); h++) {
            sum += entropies[(firstHead + h) * tokens + token];
        }
        return sum / shape.headsPerKvHead();
    }

    /** The cells of a layer and KV head, oldest position first. */
    int[] order(int pair) {
        return ofPair(now.cell, pair);
    }

    /** Which statistics are shown, and which are refused to whoever reads them. */
    record Shown(boolean mass, boolean entropy, boolean queries, boolean prior) {}

    /**
     * What a planner sees of one layer and KV head.
     *
     * @param source gives the keys and values of cells; null where nobody asks
     */
    CellStats stats(int pair, Shown shown, Function<int[], Cells> source, Supplier<Observer.QueryMoments> queries) {
        return new CellStats(
                pair / shape.kvHeads(),
                pair % shape.kvHeads(),
                ofPair(now.position, pair),
                shown.mass ? ofPair(now.mass, pair) : null,
                ofPair(now.exposure, pair),
                shown.entropy ? ofPair(now.entropy, pair) : null,
                ofPair(now.count, pair),
                shown.prior ? ofPair(now.prior, pair) : null,
                source == null ? null : source.apply(order(pair)),
                shown.queries ? queries : null);
    }

    private int[] ofPair(int[] column, int pair) {
        return Arrays.copyOfRange(column, pair * cells, pair * cells + used);
    }

    private float[] ofPair(float[] column, int pair) {
        return Arrays.copyOfRange(column, pair * cells, pair * cells + used);
    }

    /** What to write where, for every layer and KV head, in kvmerge_moves' terms: [pair][cell]. */
    record Moves(
            int[] targets,
            float[] weights,
            float[] valueWeights,
            int[] positions,
            int[] destinations,
            int[] newPositions) {}

    /**
     * Starts to move the table to what the cells will be.
     *
     * @param budget cells that stay
     * @param back positions that every key is rotated back by, but that those which come to the start get 0, 1, 2, ...
     */
    Rewrite rewrite(int budget, int back) {
        return new Rewrite(budget, back);
    }

    /** Plans of all pairs on their way into the table, which stays as it is until the end. */
    final class Rewrite {
        private final int budget;
        private final int back;
        private final int[] staying;
        private final boolean[] stays;
        private final int[] newPositions;
        private final Plan[] plans = new Plan[shape.pairs()];

        private Rewrite(int budget, int back) {
            this.budget = budget;
            this.back = back;
            this.staying = staying(budget, back);
            this.stays = new boolean[cells];
            for (int cell : staying) {
                stays[cell] = true;
            }
            this.newPositions = back > 0 ? new int[now.position.length] : null;
        }

        /**
         * Takes a pair's plan; of several pairs, on any threads.
         *
         * @throws KvmergeException naming the layer and KV head of a plan that breaks the rules
         */
        void stage(int pair, Plan plan) {
            check(pair, plan, budget);
            plans[pair] = plan;
            int base = pair * cells;
            Arrays.fill(targets, base, base + cells, NONE);
            int[] cell = order(pair);
            int[] target = plan.target();
            float[] weight = plan.weight();
            boolean[] taken = new boolean[cells];
            for (int i = 0; i < used; i++) {
                positions[base + cell[i]] = now.frame[base + i];
                taken[cell[i]] = target[i] == i;
            }
            // Pivots that already lie in a cell that stays, stay in it; the others take the free ones in order.
            int free = 0;
            int[] group = new int[used]; // of a pivot
            int groups = 0;
            for (int i = 0; i < used; i++) {
                if (target[i] != i) {
                    continue;
                }
                int destination = cell[i];
                if (!stays[destination]) {
                    while (taken[free] || !stays[free]) {
                        free++;
                    }
                    destination = free++;
                }
                destinations[base + cell[i]] = destination;
                targets[base + cell[i]] = cell[i];
                weights[base + cell[i]] = weight[i];
                int from = base + i;
                int to = base + groups;
                next.cell[to] = destination;
                next.position[to] = now.position[from];
                next.frame[to] = Math.max(groups, now.frame[from] - back);
                next.mass[to] = now.mass[from];
                next.exposure[to] = now.exposure[from];
                next.entropy[to] = weight[i] * now.entropy[from]; // the rest comes from its members
                next.count[to] = now.count[from];
                next.prior[to] = weight[i] * now.prior[from];
                if (newPositions != null) {
                    newPositions[base + cell[i]] = next.frame[to];
                }
                group[i] = groups++;
            }
            for (int i = 0; i < used; i++) {
                if (target[i] != i && target[i] != Plan.EVICTED) {
                    targets[base + cell[i]] = cell[target[i]];
                    weights[base + cell[i]] = weight[i];
                    int from = base + i;
                    int to = base + group[target[i]];
                    next.mass[to] += now.mass[from];
                    next.entropy[to] += weight[i] * now.entropy[from];
                    next.count[to] += now.count[from];
                    next.prior[to] += weight[i] * now.prior[from];
                }
            }
        }

        /**
         * What the native side has to do, when all pairs have been staged; its arrays are the table's, until the next
         * rewrite.
         */
        Moves moves() {
            return new Moves(targets, weights, valueWeights(), positions, destinations, newPositions);
        }

        /** Moves the table, when the cells have been rewritten. */
        void commit() {
            Columns before = now;
            now = next;
            next = before;
            held = staying;
            used = budget;
        }

        /** By cell; null where no plan has any. */
        private float[] valueWeights() {
            if (Arrays.stream(plans).allMatch(plan -> plan.valueWeight() == null)) {
                return null;
            }
            float[] valueWeights = new float[now.position.length];
            for (int pair = 0; pair < plans.length; pair++) {
                Plan plan = plans[pair];
                float[] weight = plan.valueWeight() == null ? plan.weight() : plan.valueWeight();
                for (int i = 0; i < used; i++) {
                    valueWeights[pair * cells + now.cell[pair * cells + i]] = weight[i];
                }
            }
            return valueWeights;
        }
    }

    /**
     * The cells that llama.cpp keeps, in the order of its positions: the newest that stays is {@code back} before the
     * newest there is.
     */
    private int[] staying(int budget, int back) {
        if (keepsNewest) {
            return Arrays.copyOfRange(held, used - budget, used);
        }
        int[] staying = new int[budget];
        Arrays.setAll(staying, c -> c);
        staying[budget - 1] = held[used - 1 - back];
        return staying;
    }

    private void check(int pair, Plan plan, int budget) {
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
}
