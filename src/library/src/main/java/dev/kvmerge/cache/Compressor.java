package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.CellTable;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.Shape;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.WeakHashMap;
import java.util.function.Supplier;
import java.util.stream.IntStream;

/** Holds one sequence's cells to their number: takes account of blocks, asks the planner, and has its plans done. */
final class Compressor implements AutoCloseable {
    /** Which statistics are shown, and which are refused to whoever reads them. */
    record Shown(boolean mass, boolean entropy, boolean queries, boolean queryHeads, boolean prior) {}

    private final Planner planner;
    private final Needs needs; // the planner's
    private final Shown declared; // by them
    private final Shape shape;
    private final int cells; // that stay
    private final int threads;
    private final Observer observer;
    private final CellTable table;
    private final ThreadLocal<CellVectors.Buffer> buffers = ThreadLocal.withInitial(this::buffer);
    private final Set<CellVectors.Buffer> weighed = Collections.newSetFromMap(new WeakHashMap<>()); // those of threads
    private volatile CellTable.Usage usage;
    private volatile Observer.CacheInfo info;

    /**
     * For an empty sequence.
     *
     * @param windows whether the model has layers with sliding windows
     */
    Compressor(
            Planner planner, CacheOptions options, boolean windows, Observer observer, Context context, int sequence) {
        this.planner = planner;
        this.needs = planner.needs();
        this.declared = new Shown(
                needs.mass(), needs.entropy(), needs.queries(), needs.queryHeads(), needs.calibration() != null);
        this.shape = context.model().shape();
        this.cells = options.cells();
        this.threads = options.compute().threads();
        this.observer = observer;
        Calibration calibration = needs.calibration();
        this.table = new CellTable(
                observer,
                context,
                sequence,
                new CellTable.Options(
                        options.cells(),
                        options.block(),
                        options.promptBlock(),
                        options.positionRange(),
                        windows,
                        needs.pivotFrame(),
                        options.fates(),
                        needs.massDecay(),
                        planner.merging(),
                        calibration == null ? null : calibration.weights()));
        look();
    }

    CellTable table() {
        return table;
    }

    /** How far the table is; also while it is at work, and when it is closed. */
    CellTable.Usage usage() {
        return usage;
    }

    /** Asks the table anew. */
    void look() {
        long own;
        synchronized (weighed) {
            own = weighed.stream().mapToLong(CellVectors.Buffer::bytes).sum();
        }
        usage = table.usage().withMore(own);
    }

    private CellVectors.Buffer buffer() {
        CellVectors.Buffer made = new CellVectors.Buffer();
        synchronized (weighed) {
            weighed.add(made);
        }
        return made;
    }

    Observer.CacheInfo info() {
        if (info == null) {
            info = observer.cacheInfo();
        }
        return info;
    }

    /** Takes tokens that were decoded into the table; nanoseconds spent observing them. */
    long take(int tokens) {
        if (needs.calibration() != null) {
            needs.calibration().checkKeys(info().keyDimension());
        }
        long nanos = table.take(tokens);
        look();
        return nanos;
    }

    boolean isFull() {
        return usage.over();
    }

    /** Plans; what throws changes nothing. */
    Plan[] plan() {
        if (planner.merging() != null) {
            table.plan();
            return new Plan[0];
        }
        int budget = this.cells - usage.pinned();
        Plan[] plans = new Plan[shape.pairs()];
        int cells = usage.cells() - usage.pinned();
        int heads = shape.kvHeads();
        Parallel.each(plans.length / heads, threads, layer -> {
            int first = layer * heads;
            List<CellStats> stats = IntStream.range(first, first + heads)
                    .mapToObj(pair -> stats(pair, buffers::get, declared, false))
                    .toList();
            Plan[] planned = planner.planLayer(stats, budget);
            if (planned == null || planned.length != heads) {
                throw new KvmergeException("the strategy's plans for layer " + layer + ": are "
                        + (planned == null ? "null" : planned.length) + " where it has " + heads + " KV heads");
            }
            for (int head = 0; head < heads; head++) {
                Plan plan = planned[head];
                check(first + head, plan, cells, budget);
                table.stage(first + head, plan.target(), plan.weight(), plan.valueWeight());
                plans[first + head] = plan;
            }
        });
        return plans;
    }

    /** Has planned what it says. */
    void carryOut(Plan[] plans) {
        try {
            table.commit();
        } finally {
            look();
        }
        for (int pair = 0; pair < plans.length; pair++) {
            if (plans[pair].addedValues() != null) {
                addValues(pair, plans[pair]);
            }
        }
    }

    private void check(int pair, Plan plan, int cells, int budget) {
        try {
            if (plan == null) {
                throw new IllegalStateException("is null");
            }
            plan.check(cells, budget);
            int expected = cells * info().valueDimension();
            if (plan.addedValues() != null && plan.addedValues().length != expected) {
                throw new IllegalStateException(
                        plan.addedValues().length + " elements to add to the values where the cells have " + expected);
            }
        } catch (IllegalStateException e) {
            throw new KvmergeException(
                    "the strategy's plan for layer " + pair / shape.kvHeads() + ", KV head " + pair % shape.kvHeads()
                            + ": " + e.getMessage(),
                    e);
        }
    }

    /** Adds what a plan adds to the values of the cells that stayed: they are the table's now, in their old order. */
    private void addValues(int pair, Plan plan) {
        int dim = info().valueDimension();
        int layer = pair / shape.kvHeads();
        int head = pair % shape.kvHeads();
        int[] staying = IntStream.range(0, plan.target().length)
                .filter(i -> plan.target()[i] == i)
                .toArray();
        int[] cells = table.columns(pair, false).cell();
        float[] values = observer.readCells(layer, head, cells, info(), new CellVectors.Buffer())
                .values()
                .clone();
        for (int c = 0; c < staying.length; c++) {
            for (int d = 0; d < dim; d++) {
                values[c * dim + d] += plan.addedValues()[staying[c] * dim + d];
            }
        }
        observer.writeValues(layer, head, cells, values, info());
    }

    /**
     * What is known of a pair's cells.
     *
     * @param whole with the pinned cells
     */
    CellStats stats(int pair, Supplier<CellVectors.Buffer> buffer, Shown shown, boolean whole) {
        int layer = pair / shape.kvHeads();
        int head = pair % shape.kvHeads();
        CellTable.Columns columns = table.columns(pair, whole);
        int next = usage.position();
        CellStats stats = new CellStats(
                layer,
                head,
                columns.position(),
                shown.mass ? columns.mass() : null,
                columns.exposure(),
                shown.entropy ? columns.entropy() : null,
                columns.count(),
                shown.prior ? columns.prior() : null,
                observer.cells(layer, head, columns.cell(), info(), buffer),
                shown.queries ? () -> observer.queryMoments(layer, head, info()) : null);
        return shown.queryHeads ? stats.withQueryHeads(() -> observer.queryHeads(layer, head, next, info())) : stats;
    }

    @Override
    public void close() {
        table.close();
    }
}
