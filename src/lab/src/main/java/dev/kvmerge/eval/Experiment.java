package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Scorer;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.WeightType;
import dev.kvmerge.strategy.Foreknowing;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Method;
import dev.kvmerge.strategy.QuantisedCells;
import dev.kvmerge.strategy.QuantisedWeights;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;
import java.util.Map;
import java.util.function.BooleanSupplier;
import java.util.function.DoubleFunction;

/**
 * The main experiment: one text, streamed once through each cache, block by block; every token is predicted from the
 * logits before it, and every prediction is compared with the full cache's. The full run comes first and leaves its
 * predictions in the work folder.
 */
public final class Experiment implements AutoCloseable {
    /**
     * What all runs share.
     *
     * @param tokens the text
     * @param block most tokens decoded between two compressions
     * @param mode how the text is read
     * @param compute how llama.cpp computes
     * @param workFolder where the full cache's predictions go while the experiment lasts
     * @param extras what is run beside, and with how many cells
     */
    public record Setup(int[] tokens, Mode mode, int block, ComputeSettings compute, Path workFolder, Extras extras) {}

    /**
     * What is run beside, and with how many cells.
     *
     * @param noiseFloor whether the full cache is run a second time, watched as the compressed ones are: its divergence
     *     from the first is what the runs' differ by without any compression
     * @param fill whether a budget grows to what llama.cpp allocates for it anyway: it rounds cells and a block up to
     *     256, and what is left over can hold text between blocks
     */
    public record Extras(boolean noiseFloor, boolean fill) {
        public static final Extras NONE = new Extras(false, false);
    }

    /**
     * What a run is asked for by.
     *
     * @param method a strategy's or scale's name, with its parameters
     * @param types of its cells; null for those of all
     */
    public record Spec(String method, CellTypes types) {
        /** "h2o", or "h2o@q8_0/q4_0" with cells of its own. */
        public static Spec of(String text) {
            int at = text.indexOf('@');
            return at < 0
                    ? new Spec(text, null)
                    : new Spec(text.substring(0, at), CellTypes.parse(text.substring(at + 1)));
        }

        /** Whether its values are quantised, which llama.cpp takes with flash attention only. */
        public boolean needsFlashAttention() {
            return types != null ? types.values().isQuantised() : method.equals(QuantisedCells.NAME);
        }
    }

    /**
     * How the text is read.
     *
     * @param prefill 0: the whole text is streamed, and compressed after each block. Else each passage of the text is
     *     read that far through the full cache, compressed once, and the rest of the passage is scored while the cache
     *     grows
     * @param passage tokens of a passage, prefill and scored ones; the whole text when streaming
     */
    public record Mode(int prefill, int passage) {
        /** Streaming. */
        public static Mode stream(int tokens) {
            return new Mode(0, tokens);
        }

        boolean streams() {
            return prefill == 0;
        }

        /** In words, for the record: "stream", "prefill 1024 of 1280". */
        public String text() {
            return streams() ? "stream" : "prefill " + prefill + " of " + passage;
        }
    }

    /**
     * One run to make.
     *
     * @param spec what was asked for: a name, with parameters or without
     * @param name in results
     * @param asked the same without types of cells that were chosen for it
     * @param compression share of the cells to save; 0 of the full cache
     * @param cells that stay; where all are kept, all
     * @param mib that its cells were to fit into; null where they were asked for by compression
     * @param types of its cells; null for those of all
     */
    public record Run(
            String spec,
            String name,
            String asked,
            Method method,
            double compression,
            int cells,
            Double mib,
            CellTypes types) {
        /** What tells this run from the others of the experiment, fit for a file name. */
        public String id() {
            return RunResult.id(name, compression);
        }

        /** Whether this is the run that all others are compared with. */
        public boolean isFull() {
            return method instanceof Full;
        }

        /** The method's parameters, for the record. */
        public Map<String, Object> parameters() {
            return NotedParameters.of(method);
        }
    }

    /** A finished run. */
    public record Outcome(RunResult result, Trace trace) {}

    /** Is told how a run goes, after each block. */
    @FunctionalInterface
    public interface Listener {
        /**
         * A block is done.
         *
         * @param tokensDone tokens decoded
         * @param perplexity of the tokens so far, or NaN
         * @param tokensPerSecond so far, without scoring
         */
        void block(int tokensDone, double perplexity, double tokensPerSecond);
    }

    /** The run was asked to stop; what was finished before it is whole. */
    public static final class Cancelled extends RuntimeException {
        private static final long serialVersionUID = 1L;
    }

    /** The full cache's second run: the noise floor. */
    public static final String AGAIN = "full-again";

    /** What the names of files end in that the next start deletes if this process is killed. */
    public static final String PART = ".part";

    private static final String LOGITS = "full-logits.bin";
    private static final String WEIGHTS = "weights.gguf" + PART;
    private static final String ATTENTION = "full-attention.bin" + PART;

    private final Model model;
    private final Setup setup;
    private final RunList list;
    private final List<Run> runs;
    private final Scorer scorer;
    private AttentionRecord attention; // for the oracle, once it is asked for
    private final int firstCompared; // the first token past the smallest budget

    /**
     * How large the caches are: one of the two lists is empty.
     *
     * @param compressions shares of the text's cells to save, between 0 and 1
     * @param mib what llama.cpp may allocate for the cells that stay and a block
     * @param choice of the cells' types in so many MiB, for strategies that are asked for without types; null for those
     *     of all
     */
    public record Sizes(List<Double> compressions, List<Double> mib, DoubleFunction<CellTypes> choice) {
        public static Sizes of(List<Double> compressions) {
            return new Sizes(compressions, List.of(), null);
        }
    }

    /**
     * Lists the runs: the full cache, then each strategy at each size. Those that keep all cells in types of their own
     * are run once, and so is what fits into the text's cells anyway: it is left out.
     *
     * @param names as {@link Spec#of} reads them
     * @throws KvmergeException.Usage if a budget is too small for a strategy, or leaves nothing of the text to score
     */
    public Experiment(Model model, Setup setup, List<String> names, Sizes sizes, Strategies.Settings settings) {
        this.model = model;
        this.setup = setup;
        this.scorer = new Scorer(model.vocabularySize(), setup.compute().threads());
        this.list = new RunList(model, setup, names, sizes, settings);
        this.runs = list.runs();
        this.firstCompared = list.firstCompared();
    }

    /** Cells that a compression leaves of a text. */
    public static int cellsFor(int tokens, double compression) {
        if (!(compression > 0 && compression < 1)) {
            throw new KvmergeException.Usage(
                    "--compression is the share of cells to save, between 0 and 1, not " + compression);
        }
        return (int) Math.round(tokens * (1 - compression));
    }

    /** Refuses a budget that a method cannot hold or that the text does not fill. */
    public static void checkBudget(Method method, int cells, int block, int tokens) {
        int fewest = method.fewestCells(block);
        if (cells < fewest) {
            throw new KvmergeException.Usage(
                    method.name() + " needs at least " + fewest + " cells with blocks of " + block + ", not " + cells
                            + ": use more cells (--cells, more --kv-mib, or more --tokens and less --compression), a"
                            + " smaller --block or fewer --sinks");
        }
        if (tokens < cells + 2L) {
            throw new KvmergeException.Usage("the text has " + tokens + " tokens, which fit into " + cells
                    + " cells: use a longer text, fewer cells or more --compression");
        }
    }

    public List<Run> runs() {
        return runs;
    }

    /** Whether the full cache's predictions are on disk, whole, from an earlier process. */
    public boolean hasFullPredictions() {
        try {
            Path file = setup.workFolder().resolve(LOGITS);
            return Files.exists(file)
                    && Files.size(file) == (long) scorer.packedRowBytes() * rowsOfPassage() * passages();
        } catch (IOException e) {
            return false;
        }
    }

    /** Deletes the full cache's predictions. */
    public void deleteFullPredictions() {
        delete(setup.workFolder().resolve(LOGITS));
        delete(setup.workFolder().resolve(LOGITS + PART));
    }

    private static void delete(Path file) {
        try {
            Files.deleteIfExists(file);
        } catch (IOException e) {
            throw new KvmergeException("cannot delete " + file + ": " + e.getMessage(), e);
        }
    }

    /**
     * Makes one run.
     *
     * @param full the outcome of the full run; null when this is it
     * @param cancelled asked after each block
     * @throws Cancelled if it says so
     */
    public Outcome make(Run run, Outcome full, Listener listener, BooleanSupplier cancelled) {
        boolean isFull = run.isFull();
        Path file = setup.workFolder().resolve(LOGITS);
        Path part = setup.workFolder().resolve(LOGITS + PART);
        Trace trace = Trace.empty(setup.tokens().length);
        Reading reading = new Reading(setup, model.vocabularySize(), scorer, firstCompared, trace);
        Recipe recipe = recipe(run, listener, cancelled);
        if (isFull) {
            delete(file); // an earlier experiment's, beside which there may be no room for this one's
        }
        PeakMemory.reset();
        long start = System.nanoTime();
        try (Model lesser = lesser(recipe.weights());
                PackedLogits predictions =
                        isFull ? PackedLogits.create(part, scorer) : PackedLogits.read(file, scorer)) {
            for (int w = 0; w < passages(); w++) {
                try (CompressedContext context =
                        new CompressedContext(lesser == null ? model : lesser, recipe.strategy(), recipe.options())) {
                    reading.read(context, w, predictions, isFull, listener, cancelled);
                }
            }
        } catch (RuntimeException | Error e) {
            if (isFull) {
                delete(part); // a full disk would stay full
            }
            throw e;
        } finally {
            delete(setup.workFolder().resolve(WEIGHTS));
        }
        double seconds = (System.nanoTime() - start) / 1e9;
        RunResult result = RunResult.of(
                run,
                list.firstScored(run),
                reading.spent(),
                recipe.attention(model, reading.spent()),
                trace,
                full,
                seconds);
        if (isFull) {
            try {
                Files.move(part, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            } catch (IOException e) {
                throw new KvmergeException("cannot rename " + part + ": " + e.getMessage(), e);
            }
        }
        return new Outcome(result, trace);
    }

    /**
     * What a run comes down to.
     *
     * @param weights type of the model's weights, null for those that it has
     */
    private record Recipe(Strategy strategy, CacheOptions options, String weights) {
        /** With what flash attention it ran, and of how many captured queries its attention was told. */
        RunResult.Attention attention(Model model, Reading.Spent spent) {
            ComputeSettings compute = options.compute();
            boolean flash =
                    switch (compute.flashAttention()) {
                        case ON -> true;
                        case OFF -> false;
                        case AUTO -> spent.flashAttention();
                    };
            boolean captured = CacheChecks.captures(model, strategy, options, flash);
            boolean stopped = flash && !captured && strategy.needs().observes();
            return new RunResult.Attention(
                    flash,
                    captured && strategy.needs().mass() ? compute.observedQueries() : null,
                    captured ? "capture" : stopped ? "stop" : null);
        }
    }

    private Recipe recipe(Run run, Listener listener, BooleanSupplier cancelled) {
        return switch (run.method()) {
            case Strategy strategy -> new Recipe(strategy, options(run, compute(run)), null);
            case Foreknowing oracle ->
                new Recipe(oracle.knowing(future(listener, cancelled)), options(run, compute(run)), null);
            case QuantisedCells cells ->
                new Recipe(
                        new Full(),
                        options(run, setup.compute().withCells(new CellTypes(CellType.Q8_0, CellType.Q8_0))),
                        null);
            case QuantisedWeights weights -> new Recipe(new Full(), options(run, compute(run)), weights.type());
        };
    }

    private ComputeSettings compute(Run run) {
        return run.types() == null ? setup.compute() : setup.compute().withCells(run.types());
    }

    /** The model with weights of another type; null for none. */
    private Model lesser(String weights) {
        if (weights == null) {
            return null;
        }
        Path file = setup.workFolder().resolve(WEIGHTS);
        WeightType.named(weights)
                .quantise(model.library(), model.path(), file, setup.compute().threads());
        return Model.load(model.library(), file, model.backend(), -1);
    }

    /** The attention of a full run, which is recorded the first time. */
    private Foreknowing.Future future(Listener listener, BooleanSupplier cancelled) {
        if (attention == null) {
            attention = new AttentionRecord(
                    model,
                    setup.tokens(),
                    options(runs.getFirst(), setup.compute()),
                    setup.workFolder().resolve(ATTENTION),
                    listener,
                    cancelled);
        }
        return attention;
    }

    @Override
    public void close() {
        if (attention != null) {
            attention.close();
            attention = null;
        }
    }

    private int passages() {
        return setup.tokens().length / setup.mode().passage();
    }

    /** Predictions of a passage that are compared. */
    private int rowsOfPassage() {
        return setup.mode().passage() - firstCompared;
    }

    private CacheOptions options(Run run, ComputeSettings compute) {
        // Without streaming, a passage is compressed once, after its prefill.
        int block = setup.mode().streams() ? setup.block() : setup.mode().prefill();
        return (run.method().keepsAll()
                        ? CacheOptions.unlimited(run.cells(), block)
                        : CacheOptions.of(run.cells(), block))
                .with(compute);
    }
}
