package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.CellMemory;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;

/** What a {@link CompressedContext} cannot be, refused before anything is made. */
public final class CacheChecks {
    private static final int TABLE_BYTES = 2 * 8 * 4 + 4 * 4; // an entry's columns now and next, and its moves
    private static final int OBSERVER_BYTES = 2 * 4 + 17; // an entry's mass, and its distance from its neighbour
    private static final int WAITING_QUERIES = 64; // of a layer, where none are captured
    private static final int MOST_ENTRIES = Integer.MAX_VALUE - 8; // of an array, such as a block's mass

    private final Model model;
    private final Planner planner;
    private final Needs needs;
    private final CacheOptions options;

    CacheChecks(Model model, Planner planner, CacheOptions options) {
        this.model = model;
        this.planner = planner;
        this.needs = planner.needs();
        this.options = options;
    }

    void check(Observer.Options observe) {
        if (planner.keepsAll() != (options.cells() == 0)) {
            throw new KvmergeException.Usage(
                    planner.keepsAll() ? "a number of cells needs a strategy" : "a strategy needs a number of cells");
        }
        checkBias(observe.bias(), options.compute().flashAttention());
        if (planner.keepsAll()) {
            return;
        }
        int fewest = planner.fewestCells(1);
        if (options.cells() < fewest) {
            throw new KvmergeException.Usage(planner.name() + " needs at least " + fewest + " cells, not "
                    + options.cells() + ": use more --cells, or other parameters of the strategy");
        }
        checkModel(model, planner, options.cells(), options.positionRange() > 0);
        checkObserved(observe);
    }

    /**
     * Refuses what a model and a planner cannot do together; asked before a full cache is run to compare with.
     *
     * @param cells that stay
     * @param limited whether positions have a range
     */
    public static void checkModel(Model model, Planner planner, int cells, boolean limited) {
        if (planner.keepsAll()) {
            return;
        }
        Calibration calibration = planner.needs().calibration();
        if (calibration != null) {
            calibration.check(model.shape().layers(), model.shape().kvHeads());
        }
        checkWindow(model, cells, limited);
    }

    /** Refuses to observe less than the planner reads. */
    private void checkObserved(Observer.Options observe) {
        if (needs.mass() && !observe.mass()) {
            throw unobserved("the mass", "ask for it in the Observer.Options");
        }
        if (needs.mass()
                && (observe.massPower() != needs.massPower() || observe.massQueries() != needs.massQueries())) {
            throw unobserved(
                    "a mass of power " + needs.massPower() + " over "
                            + (needs.massQueries() == 0 ? "all" : "the newest " + needs.massQueries()) + " queries",
                    "use withMassPower and withMassQueries of the Observer.Options");
        }
        if (needs.entropy() && !observe.entropy()) {
            throw unobserved("the entropy", "ask for it in the Observer.Options");
        }
        if (needs.queryHeads() && !observe.queryHeads()) {
            throw unobserved("each query head", "use withQueryHeads of the Observer.Options");
        }
        if (needs.queries() && !observe.queries() && !observe.queryHeads()) { // a query head's are among them
            throw unobserved("the queries", "use withQueries of the Observer.Options");
        }
        if (needs.bias() != Bias.NONE && observe.bias() != needs.bias()) {
            throw unobserved("the bias " + needs.bias(), "give the Observer.Options the same");
        }
    }

    private KvmergeException.Usage unobserved(String what, String remedy) {
        return new KvmergeException.Usage(planner.name() + " needs " + what + ", which is not observed: " + remedy);
    }

    /**
     * Refuses what a model with sliding windows cannot do: llama.cpp frees a position in all of its layers at once and
     * moves none, so all positions of a window have to stay where they are.
     */
    public static void checkWindow(Model model, int cells, boolean limited) {
        int window = model.slidingWindow();
        if (window == 0) {
            return;
        }
        if (cells < window) {
            throw new KvmergeException.Usage(
                    "the model " + model.path() + " has layers with sliding windows of " + window + " positions, and "
                            + cells + " cells do not hold one: use more cells (--cells, less --compression, or a longer"
                            + " text or prompt)");
        }
        if (limited) {
            throw new KvmergeException.Usage("the model " + model.path()
                    + " has layers with sliding windows, whose positions llama.cpp cannot number anew:"
                    + " endless texts need another model");
        }
    }

    /** Refuses an exact bias where there are no scores to add it to. */
    public static void checkBias(Bias bias, FlashAttention flashAttention) {
        if (bias == Bias.EXACT && flashAttention != FlashAttention.OFF) {
            throw new KvmergeException.Usage(
                    "an exact bias is added to the scores, which flash attention does not show:"
                            + " use -fa off, or --bias folded");
        }
    }

    /** Whether a planner's queries are captured, as far as is known before the first graph. */
    public static boolean captures(Model model, Planner planner, CacheOptions options, boolean flashAttention) {
        return Watched.observing(model, planner, options).captures(flashAttention);
    }

    /**
     * Bytes that kvmerge is going to keep beside the cells of a sequence, about, wherever they lie:
     * {@link CompressedContext#tableBytes} knows, once there are any.
     */
    public static long tableBytes(Model model, Planner planner, CacheOptions options) {
        return Kept.of(model, options, Watched.observing(model, planner, options))
                .total();
    }

    /**
     * Bytes kept beside the cells of a sequence.
     *
     * @param tables of the cells, and what was observed
     * @param captured queries of a block with their masks; they lie where the model's layers do
     */
    record Kept(long tables, long captured) {
        static Kept of(Model model, CacheOptions options, Observer.Options observe) {
            Shape shape = model.shape();
            long entry = TABLE_BYTES
                    + OBSERVER_BYTES
                    + (options.fates() ? 2 * Integer.BYTES : 0)
                    + (options.positionRange() > 0 ? Integer.BYTES : 0);
            long dimension = CellMemory.keyDimension(model);
            long query = (long) Float.BYTES * shape.layers() * shape.heads() * dimension;
            boolean queries = observe.queries() || observe.queryHeads() || observe.bias() == Bias.FOLDED;
            boolean captures = observe.captures(options.compute().flashAttention() != FlashAttention.OFF);
            long heads =
                    (queries ? shape.pairs() : 0) + (observe.queryHeads() ? (long) shape.layers() * shape.heads() : 0);
            long moments = Float.BYTES * heads * dimension * (dimension + 1);
            long waiting = queries && !captures ? WAITING_QUERIES * query : 0;
            long masked = (long) options.allocated() * Short.BYTES;
            return new Kept(
                    (long) shape.pairs() * options.allocated() * entry + moments + waiting,
                    captures ? options.promptBlock() * (query + masked) : 0);
        }

        long total() {
            return tables + captured;
        }
    }

    /** Refuses tables that the machine has not the memory for. */
    static void checkMemory(Model model, CacheOptions options, Observer.Options observe, ContextOptions made) {
        long entries = (long) model.shape().pairs() * options.allocated(); // of a sequence
        Kept kept = Kept.of(model, options, observe);
        model.checkMemory(made, made.sequences() * kept.tables, made.sequences() * kept.captured, observe.queryHeads());
        if (entries > MOST_ENTRIES) {
            throw new KvmergeException("the tables of " + made.cells() + " cells have " + entries
                    + " entries, more than an array can: use fewer --cells");
        }
    }
}
