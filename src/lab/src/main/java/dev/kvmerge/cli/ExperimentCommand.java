package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.RecordedExperiment;
import dev.kvmerge.report.Report;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.report.Table;
import dev.kvmerge.strategy.Strategies;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** The main job: what does a smaller cache cost? */
@Command(
        name = "experiment",
        mixinStandardHelpOptions = true,
        description = "Streams a text through the full cache and through compressed ones, and says what each loses and "
                + "saves.",
        footer = {
            "",
            "Examples:",
            "  kvmerge experiment --strategies full,entropy-merged,h2o,streaming-llm \\",
            "      --compression 0.7,0.9 --tokens 4096",
            "  kvmerge experiment -m llama-2-7b.Q4_K_M.gguf -f book.txt --out results/llama",
            "  kvmerge experiment --out results --resume      goes on after Ctrl-C"
        })
final class ExperimentCommand implements Runnable {
    @Spec
    private CommandSpec command;

    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

    @Mixin
    private StrategyOptions settings;

    @Option(
            names = "--strategies",
            split = ",",
            paramLabel = "NAME",
            defaultValue = "full,entropy-merged,h2o,streaming-llm",
            description = "what to compare; full always runs, to be compared with. NAME@K/V has cells of types of its"
                    + " own, as full@q4_0 or h2o@q8_0/q4_0; quantised V cells turn -fa on for that run"
                    + " (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--compression",
            split = ",",
            paramLabel = "SHARE",
            defaultValue = "0.7,0.9",
            description = "shares of the text's cells to save (default: ${DEFAULT-VALUE})")
    private List<Double> compressions;

    @Option(
            names = "--kv-mib",
            split = ",",
            paramLabel = "MIB",
            description = {
                "instead of --compression: MiB that llama.cpp may allocate for the cells that stay and a block. A"
                        + " strategy without types of its own gets the cells that lose least at that size, unless -ctk"
                        + " or -ctv says which"
            })
    private List<Double> mib = List.of();

    @Mixin
    private final PartOptions reading = new PartOptions(4096);

    @Mixin
    private BlockOption block;

    @Option(
            names = "--prefill",
            paramLabel = "N",
            description =
                    "instead of streaming: read N tokens through the full cache, compress once, then score --score "
                            + "tokens while the"
                            + " cache grows; over as many passages as --tokens holds")
    private Integer prefill;

    @Option(
            names = "--score",
            paramLabel = "N",
            defaultValue = "256",
            description = "with --prefill: tokens scored after it (default: ${DEFAULT-VALUE})")
    private int score;

    @Option(
            names = "--noise-floor",
            paramLabel = "on|off",
            defaultValue = "on",
            description =
                    "run the full cache a second time, watched as the compressed ones are: what it differs by from"
                            + " itself is no compression's doing (default: ${DEFAULT-VALUE})")
    private OnOff noiseFloor;

    @Option(
            names = "--fill",
            description =
                    "use all cells that llama.cpp allocates: it rounds cells and a block up to 256; a budget of 410"
                            + " with blocks of 128 becomes 640. Not with --prefill")
    private boolean fill;

    @Mixin
    private final ResultsOptions out = new ResultsOptions("results");

    /** Of an option that is on unless it is switched off. */
    enum OnOff {
        ON,
        OFF
    }

    @Override
    public void run() {
        out.check();
        Least.of("--block", block.tokens, 1);
        if (prefill != null
                && (prefill < 2 || score < 2 || (reading.tokens != 0 && (long) prefill + score > reading.tokens))) {
            throw new KvmergeException.Usage(
                    "--prefill and --score must be 2 and more, and together fit into --tokens: " + prefill + ", "
                            + score + ", " + reading.tokens);
        }
        if (prefill == null) {
            StrategyOptions.refuse(command, List.of("--score"), "goes with --prefill");
        } else {
            StrategyOptions.refuse(command, List.of("--block"), "goes without --prefill, which compresses once");
        }
        StrategyOptions.refuseOfFull(command, List.of("--compression"), strategies);
        if (fill && prefill != null) {
            throw new KvmergeException.Usage(
                    "--fill uses what a block leaves over, and with --prefill there is no block after the one"
                            + " compression: leave one of them out");
        }
        if (!mib.isEmpty()) {
            StrategyOptions.refuse(command, List.of("--compression", "--fill", "--prefill"), "goes without --kv-mib");
            mib.forEach(KvMemory::check);
        }
        List<Experiment.Spec> specs =
                strategies.stream().map(Experiment.Spec::of).toList();
        List<String> methods = specs.stream().map(Experiment.Spec::method).toList();
        checkFlashAttention(specs);
        ComputeSettings compute = model.compute(
                mib.isEmpty() ? FlashAttention.OFF : FlashAttention.ON,
                specs.stream().anyMatch(Experiment.Spec::needsFlashAttention));
        model.checkCells(compute, settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategies.Settings chosen = settings.settings(model, catalogue, methods, command);
        boolean captures = model.captures(compute);
        if (noiseFloor == OnOff.OFF) { // else the floor's run is observed
            ModelOptions.checkObservation(
                    command,
                    methods.stream()
                            .map(name -> Strategies.method(name, chosen))
                            .toList());
        }
        if (noiseFloor == OnOff.OFF || !captures) {
            ModelOptions.checkCaptured(
                    command,
                    specs.stream()
                            .filter(spec -> captures || spec.needsFlashAttention())
                            .map(spec -> Strategies.method(spec.method(), chosen))
                            .toList());
        }
        ModelOptions.checkBias( // and a wrong name is said before anything is loaded
                compute,
                methods.stream().map(name -> Strategies.method(name, chosen)).toList());
        compressions.forEach(c -> Experiment.cellsFor(1, c));
        Text read = text.read(catalogue);
        TextOptions.holds(read, "--tokens", reading.tokens);
        TextOptions.holds(read, "--block", block.tokens);
        TextOptions.holds(read, "--prefill with --score", prefill == null ? 0 : (long) prefill + score);
        try (ResultsFolder folder = out.open(ResultsFolder::hasResults)) {
            try (Model loaded = model.load(catalogue)) {
                int[] part = reading.of(loaded, read);
                Experiment.Mode mode = prefill == null
                        ? Experiment.Mode.stream(part.length)
                        : new Experiment.Mode(prefill, prefill + score);
                Interrupt.listen("kvmerge: stopping at the end of this block; what is finished is in " + out.folder()
                        + ", go on with --resume");
                ExperimentRunner.Finished finished = new ExperimentRunner(loaded, read, reading.offset, part, compute)
                        .run(
                                new ExperimentRunner.Request(
                                        mode,
                                        block.tokens,
                                        strategies,
                                        sizes(loaded, compute),
                                        chosen,
                                        new Experiment.Extras(noiseFloor == OnOff.ON, fill),
                                        options()),
                                folder,
                                out.resume);
                print(finished.record());
            }
        }
    }

    /** Refuses to turn flash attention off where a strategy's own V cells need it. */
    private void checkFlashAttention(List<Experiment.Spec> specs) {
        for (int i = 0; i < specs.size(); i++) {
            if (specs.get(i).needsFlashAttention() && model.flashAttention == FlashAttention.OFF) {
                throw new KvmergeException.Usage(
                        strategies.get(i) + " has quantised V cells, which llama.cpp takes with"
                                + " flash attention only: leave -fa off out, and it is on for such runs alone");
            }
        }
    }

    /** Those that were given, and what was compared at which sizes, given or not. */
    private Map<String, String> options() {
        Map<String, String> options = GivenOptions.of(command);
        options.put("--strategies", GivenOptions.list(strategies));
        if (mib.isEmpty() && !StrategyOptions.onlyFull(strategies)) {
            options.put("--compression", GivenOptions.list(compressions));
        }
        return options;
    }

    private Experiment.Sizes sizes(Model loaded, ComputeSettings compute) {
        return mib.isEmpty()
                ? Experiment.Sizes.of(compressions)
                : new Experiment.Sizes(
                        List.of(),
                        mib,
                        model.hasCellTypes(command)
                                ? null
                                : size -> model.cellTypes(
                                        command, new KvMemory.Room(loaded, size, block.tokens, 1, compute)));
    }

    private void print(RecordedExperiment record) {
        Report report = record.header();
        List<RunResult> results = record.results();
        System.out.println();
        System.out.printf(
                Locale.ROOT,
                "%s, %,d tokens of %s from token %,d, %s, block %d, %d threads, flash attention %s%n%n",
                report.model().description(),
                report.settings().tokens(),
                report.text().name(),
                reading.offset,
                report.settings().mode(),
                block.tokens,
                report.settings().threads(),
                record.report().flashAttention());
        System.out.print(Table.of(results));
        System.out.println();
        System.out.print(Table.comparisons(results, record.traces()));
        System.out.print(Table.savedWithQuantisation(results, model.keyType, model.valueType));
        System.out.println();
        System.out.println("Written to " + out.folder() + ": results.json, results.csv, traces/, and plots (*.svg).");
    }
}
