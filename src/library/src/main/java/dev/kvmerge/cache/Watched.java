package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Model;
import java.util.Objects;

/**
 * What a compressed context is made of.
 *
 * @param observer of the sequence
 * @param shown what a caller may see of its statistics; a planner is shown no more than it declares
 * @param compressor holds the sequence to its cells
 */
record Watched(Context context, Observer observer, Compressor.Shown shown, Compressor compressor) {
    /** A context of its own, for one sequence, with its observer. */
    static Watched open(Model model, Planner planner, CacheOptions options, Observer.Options observe) {
        new CacheChecks(model, given(planner), options).check(observe);
        int cells = options.allocated();
        ContextOptions contextOptions = ContextOptions.of(options.wanted(), options.promptBlock(), options.compute());
        CacheChecks.checkMemory(model, options, observe, contextOptions);
        Observer observer = new Observer(model.shape(), cells, options.promptBlock(), observe);
        Context made = null;
        try {
            made = new Context(model, contextOptions, observer.callback());
            if (made.cells() > cells) {
                throw new KvmergeException(
                        "llama.cpp made " + made.cells() + " cells where " + cells + " were expected");
            }
            return of(planner, options, observe, observer, made, 0);
        } catch (RuntimeException | Error e) {
            if (made != null) {
                made.close();
            }
            observer.close();
            throw e;
        }
    }

    /** A sequence of a context that there is. */
    static Watched of(
            Planner planner,
            CacheOptions options,
            Observer.Options observe,
            Observer observer,
            Context context,
            int sequence) {
        boolean windows = context.model().slidingWindow() > 0;
        Compressor.Shown shown = new Compressor.Shown(
                observe.mass(),
                observe.entropy(),
                observe.queries() || observe.queryHeads() || observe.bias() == Bias.FOLDED,
                observe.queryHeads(),
                planner.needs().calibration() != null);
        return new Watched(
                context, observer, shown, new Compressor(planner, options, windows, observer, context, sequence));
    }

    /** What is observed for a planner, and no more. */
    static Observer.Options observing(Model model, Planner planner, CacheOptions options) {
        Needs needs = given(planner).needs();
        return Observer.Options.of(
                        needs.mass(),
                        needs.entropy(),
                        needs.bias(),
                        options.compute().threads())
                .withMassPower(needs.massPower())
                .withMassQueries(needs.massQueries())
                .withMassSample(options.compute().observedQueries())
                .withQueries(needs.queries())
                .withQueryHeads(needs.queryHeads())
                .withBackend(model.backend())
                .withObservation(options.compute().observation());
    }

    private static Planner given(Planner planner) {
        return Objects.requireNonNull(planner, "no planner: new Full() keeps every cell");
    }
}
