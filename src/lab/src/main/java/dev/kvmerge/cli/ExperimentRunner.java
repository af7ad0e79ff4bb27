package dev.kvmerge.cli;

import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import dev.kvmerge.report.Plots;
import dev.kvmerge.report.RecordedExperiment;
import dev.kvmerge.report.Report;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.strategy.Strategies;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Runs experiments on a part of a text, with their progress on the terminal and their results in folders. */
final class ExperimentRunner {
    private final Model model;
    private final Text text;
    private final int offset;
    private final int[] tokens;
    private final ComputeSettings compute;
    private Report header; // with the settings of the last experiment; the rest stays

    /**
     * @param offset first token of the text that is read
     * @param tokens what is read
     */
    ExperimentRunner(Model model, Text text, int offset, int[] tokens, ComputeSettings compute) {
        this.model = model;
        this.text = text;
        this.offset = offset;
        this.tokens = tokens;
        this.compute = compute;
    }

    /** The same with about so many of a block's captured queries observed. */
    ExperimentRunner observing(int queries) {
        return new ExperimentRunner(model, text, offset, tokens, compute.withObservedQueries(queries));
    }

    /**
     * What to run.
     *
     * @param mode how the text is read; what does not fill its last passage is left out
     * @param strategies and scales, by name
     * @param sizes of the caches
     * @param extras what is run beside
     * @param options of an experiment that asks for this, by name
     */
    record Request(
            Experiment.Mode mode,
            int block,
            List<String> strategies,
            Experiment.Sizes sizes,
            Strategies.Settings settings,
            Experiment.Extras extras,
            Map<String, String> options) {}

    /** What came of it: the runs that were to be made, and their figures. */
    record Finished(List<Experiment.Run> runs, RecordedExperiment record) {}

    /**
     * Makes the runs that the folder does not hold yet, and draws all of them.
     *
     * @param resume whether the folder's runs are taken over
     * @throws Experiment.Cancelled if asked to stop; what is finished is in the folder
     */
    Finished run(Request request, ResultsFolder folder, boolean resume) {
        int passage = request.mode().passage();
        int[] whole = Arrays.copyOf(tokens, tokens.length / passage * passage);
        Experiment.Setup setup =
                new Experiment.Setup(whole, request.mode(), request.block(), compute, folder.path(), request.extras());
        try (Experiment experiment =
                new Experiment(model, setup, request.strategies(), request.sizes(), request.settings())) {
            RecordedExperiment record =
                    new RecordedExperiment(experiment, header(setup, request.options()), folder, resume);
            for (Experiment.Run run : record.missing()) {
                make(run, experiment.runs(), record, whole.length);
            }
            experiment.deleteFullPredictions();
            Plots.of(record.results(), record.traces()).forEach(folder::write);
            return new Finished(experiment.runs(), record);
        }
    }

    private static void make(Experiment.Run run, List<Experiment.Run> runs, RecordedExperiment record, int tokens) {
        String title = String.format(Locale.ROOT, "%d/%d %-24s", runs.indexOf(run) + 1, runs.size(), run.id());
        RunResult result;
        try (Progress progress = new Progress(title)) {
            result = record.make(
                    run,
                    (at, perplexity, speed) ->
                            progress.update((double) at / tokens, soFar(at, tokens, perplexity, speed)),
                    Interrupt::requested);
        }
        System.err.println(title.strip() + ": " + summary(result));
    }

    /** How far a run is. Perplexity and speed are left out until a token has been scored. */
    static String soFar(int at, int tokens, double perplexity, double speed) {
        String text = String.format(Locale.ROOT, "%,d of %,d tokens", at, tokens);
        return Double.isFinite(perplexity) && Double.isFinite(speed)
                ? text + String.format(Locale.ROOT, ", PPL %.3f, %.0f tokens/s", perplexity, speed)
                : text;
    }

    private static String summary(RunResult run) {
        return String.format(
                Locale.ROOT,
                "PPL %.3f%s, %.0f tokens/s",
                run.perplexity(),
                run.klMean() == null ? "" : String.format(Locale.ROOT, ", KL %.4f", run.klMean()),
                run.tokensPerSecond());
    }

    private Report header(Experiment.Setup setup, Map<String, String> options) {
        Report.Settings settings = new Report.Settings(
                setup.tokens().length,
                setup.mode().text(),
                setup.block(),
                compute.threads(),
                compute.flashAttention().name().toLowerCase(Locale.ROOT),
                compute.keyType().name().toLowerCase(Locale.ROOT),
                compute.valueType().name().toLowerCase(Locale.ROOT),
                compute.captures(model.backend() == Backend.CPU) ? compute.observedQueries() : null);
        header =
                header == null ? Provenance.of(model, text, offset, settings, options) : header.with(settings, options);
        return header;
    }
}
