package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.eval.Experiment.Mode;
import dev.kvmerge.eval.Experiment.Run;
import dev.kvmerge.eval.Experiment.Setup;
import dev.kvmerge.eval.Experiment.Sizes;
import dev.kvmerge.eval.Experiment.Spec;
import dev.kvmerge.llama.CellMemory;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.WeightType;
import dev.kvmerge.strategy.Foreknowing;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Method;
import dev.kvmerge.strategy.QuantisedCells;
import dev.kvmerge.strategy.QuantisedWeights;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.util.ArrayList;
import java.util.List;

/**
 * The runs of an experiment: the full cache, then each strategy at each size. Those that keep all cells in types of
 * their own are run once, and so is what fits into the text's cells anyway: it is left out. What cannot be run is
 * refused here, before anything is.
 */
final class RunList {
    private final Model model;
    private final Setup setup;
    private final Sizes sizes;
    private final Strategies.Settings settings;
    private final int length; // tokens that a budget is a share of
    private final List<Run> runs = new ArrayList<>();

    RunList(Model model, Setup setup, List<String> names, Sizes sizes, Strategies.Settings settings) {
        this.model = model;
        this.setup = setup;
        this.sizes = sizes;
        this.settings = settings;
        Mode mode = setup.mode();
        if (mode.prefill() < 0
                || mode.prefill() > mode.passage() - 2
                || mode.passage() > setup.tokens().length
                || setup.tokens().length % mode.passage() != 0) {
            throw new IllegalArgumentException("not a way to read " + setup.tokens().length + " tokens: " + mode);
        }
        this.length = mode.streams() ? setup.tokens().length : mode.prefill();
        runs.add(keepingAll(Strategies.FULL, Strategies.FULL, new Full(), null));
        for (double compression : sizes.compressions()) {
            names.forEach(name -> addCompressed(name, compression));
        }
        for (double mib : sizes.mib()) {
            names.forEach(name -> addFitting(name, mib));
        }
        if (setup.extras().noiseFloor()) {
            runs.add(keepingAll(Experiment.AGAIN, Experiment.AGAIN, new FullAgain(), null));
        }
    }

    List<Run> runs() {
        return List.copyOf(runs);
    }

    /** The first token of a passage that is compared with the full cache's: the one past the smallest budget. */
    int firstCompared() {
        if (!setup.mode().streams()) {
            return setup.mode().prefill() + 1;
        }
        int smallest = runs.stream()
                .filter(run -> run.compression() != 0)
                .mapToInt(this::scoredAfter)
                .min()
                .orElse(0);
        return smallest + 1;
    }

    /** Of a run: those past its budget, as many for all methods of a compression. */
    int firstScored(Run run) {
        return run.compression() == 0 || !setup.mode().streams() ? firstCompared() : scoredAfter(run) + 1;
    }

    /** The cells that a compressed run fills before anything of it is scored. */
    private int scoredAfter(Run run) {
        return run.method().keepsAll() ? budget(run.compression()) : run.cells();
    }

    /** Adds a method with a share of the cells saved. */
    private void addCompressed(String name, double compression) {
        Spec spec = Spec.of(name);
        Method method = method(name, spec);
        if (method instanceof Full) {
            addKeepingAll(name, spec, method);
            return;
        }
        int cells = budget(compression);
        check(spec, method, cells);
        int stay = method.keepsAll() ? setup.mode().passage() : cells;
        double saved = setup.extras().fill() ? 1 - (double) cells / length : compression;
        String label = label(spec, spec.types(), method);
        add(new Run(name, label, label, method, saved, stay, null, spec.types()));
    }

    /** Adds a method with the cells that fit into some memory, unless all of the text does. */
    private void addFitting(String name, double mib) {
        Spec spec = Spec.of(name);
        Method method = method(name, spec);
        if (method.keepsAll()) {
            addKeepingAll(name, spec, method);
            return;
        }
        CellTypes own =
                spec.types() == null && sizes.choice() != null ? sizes.choice().apply(mib) : spec.types();
        CellTypes types = own == null ? setup.compute().cells() : own;
        int allocated = CellMemory.mostCells(model, types, mib * CellMemory.MIB, setup.block(), setup.compute());
        int cells = Math.max(0, allocated - setup.block());
        if (cells + 2 > length) {
            return; // it is the full cache in these cells
        }
        check(new Spec(spec.method(), own), method, cells);
        double saved = 1 - (double) cells / length;
        String asked = label(spec, spec.types(), method);
        add(new Run(name, label(spec, own, method), asked, method, saved, cells, mib, own));
    }

    /** Adds the full cache in cells of its own, or a scale, once; not the one that all are compared with. */
    private void addKeepingAll(String name, Spec spec, Method method) {
        boolean full = method instanceof Full;
        if (full && spec.types() == null) {
            return;
        }
        add(keepingAll(name, label(spec, spec.types(), method), full ? new FullInOtherCells() : method, spec.types()));
    }

    private Run keepingAll(String spec, String label, Method method, CellTypes types) {
        return new Run(spec, label, label, method, 0, setup.mode().passage(), null, types);
    }

    private void add(Run run) {
        if (runs.stream().noneMatch(other -> other.id().equals(run.id()))) {
            runs.add(run);
        }
    }

    private static String label(Spec spec, CellTypes types, Method method) {
        return Strategies.label(spec.method(), method) + (types == null ? "" : "@" + types.text());
    }

    /** The method that is asked for; refuses, before anything is run, a scale that there is not. */
    private Method method(String name, Spec spec) {
        Method method = Strategies.method(spec.method(), settings);
        switch (method) {
            case Foreknowing oracle
            when !setup.mode().streams() ->
                throw new KvmergeException.Usage(
                        "the oracle knows the future of a text that is streamed: leave --prefill out");
            case QuantisedWeights weights -> WeightType.named(weights.type());
            case QuantisedCells cells
            when spec.types() != null ->
                throw new KvmergeException.Usage(name + ": " + spec.method()
                        + " is a type of cells itself: full@TYPE is the full cache in others");
            default -> {}
        }
        return method;
    }

    /** Refuses a budget that the method, the model or the cells' types do not take. */
    private void check(Spec spec, Method method, int cells) {
        Experiment.checkBudget(method, cells, setup.mode().streams() ? setup.block() : 1, length);
        if (method instanceof Strategy strategy) {
            CacheChecks.checkModel(model, strategy, cells, false);
            if (spec.types() != null) {
                CacheChecks.checkBias(
                        strategy.needs().bias(),
                        setup.compute().withCells(spec.types()).flashAttention());
            }
        } else if (!method.keepsAll()) {
            CacheChecks.checkWindow(model, cells, false);
        }
    }

    /** Cells that a compression leaves of the text, or of a passage's prefill; the same for what those save of it. */
    private int budget(double compression) {
        int cells = Experiment.cellsFor(length, compression);
        return setup.extras().fill() && setup.mode().streams()
                ? CacheOptions.of(cells, setup.block()).filled().cells()
                : cells;
    }
}
