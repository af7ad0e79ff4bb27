package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.eval.Endless;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.EndlessTable;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Text past the trained context. */
@Command(
        name = "endless",
        mixinStandardHelpOptions = true,
        description = {
            "Reads a text longer than the positions the model was trained on, in a fixed number of cells: past them, "
                    + "keys are rotated back after each block.",
            "Prints the perplexity stretch by stretch, and by how much that of each further cache is above the first"
                    + " one's, with an error over means of 64 tokens; beside it, the full cache, which breaks past the"
                    + " trained context."
        },
        footer = {
            "",
            "Example:",
            "  kvmerge endless -f paradise-lost --cells 1024 --tokens 100000 \\",
            "      --full-tokens 12288"
        })
final class EndlessCommand implements Runnable {
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
            defaultValue = "entropy-merged,streaming-llm",
            description = "what to compare (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--cells",
            paramLabel = "N",
            defaultValue = "1024",
            description = "cells that stay (default: ${DEFAULT-VALUE})")
    private int cells;

    @Option(
            names = "--kv-mib",
            paramLabel = "MIB",
            description = "instead of --cells: MiB that llama.cpp may allocate for the cells and a block; the cells are"
                    + " of the type that loses least at that size, unless -ctk or -ctv says which")
    private Double mib;

    @Option(
            names = "--position-range",
            paramLabel = "N",
            description = "positions that the cells are spread over at most; as many as --cells is StreamingLLM's own"
                    + " numbering (default: half of what the model was trained on)")
    private Integer positionRange;

    @Option(names = "--span", hidden = true)
    private void span(int n) {
        Renamed.warn("--span", "--position-range");
        positionRange = n;
    }

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "32768",
            description = "tokens of the text to read; 0 for all (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--full-tokens",
            paramLabel = "N",
            defaultValue = "12288",
            description =
                    "tokens that the full cache reads, for which it needs as many cells; 0 leaves it out (default: "
                            + "${DEFAULT-VALUE})")
    private int fullTokens;

    @Mixin
    private BlockOption block;

    @Option(
            names = "--stretch",
            paramLabel = "N",
            defaultValue = "4096",
            description = "tokens a row of the table (default: ${DEFAULT-VALUE})")
    private int stretch;

    @Mixin
    private final OutOption out = new OutOption("results/endless");

    @Override
    public void run() {
        Least.of("--cells", cells, 1);
        Least.of("--block", block.tokens, 1);
        Least.of("--stretch", stretch, 2);
        if (fullTokens < 0 || fullTokens == 1) {
            throw new KvmergeException.Usage("--full-tokens must be 2 or more, or 0 for none, not " + fullTokens);
        }
        if (mib != null) {
            StrategyOptions.refuse(command, List.of("--cells"), "goes without --kv-mib");
            KvMemory.check(mib);
        }
        ComputeSettings compute = model.compute(mib == null ? FlashAttention.OFF : FlashAttention.ON);
        model.checkCells(compute, settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategies.Settings chosen = settings.settings(model, catalogue, strategies, command);
        Map<String, Strategy> caches = new LinkedHashMap<>();
        for (String name : strategies) {
            Strategy strategy = Strategies.create(name, chosen);
            if (!strategy.keepsAll()) {
                if (mib == null) {
                    Experiment.checkBudget(strategy, cells, block.tokens, Integer.MAX_VALUE);
                }
                caches.put(name, strategy);
            }
        }
        if (caches.isEmpty() && fullTokens == 0) {
            throw new KvmergeException.Usage(
                    "--strategies names nothing but the full cache, which --full-tokens 0 leaves out: name another");
        }
        ModelOptions.checkBias(compute, List.copyOf(caches.values()));
        ModelOptions.checkObserved(command, List.copyOf(caches.values()));
        Text read = text.read(catalogue);
        TextOptions.holds(read, "--tokens", tokens);
        TextOptions.holds(read, "--cells", mib == null ? cells : 0);
        TextOptions.holds(read, "--block", block.tokens);
        Interrupt.listen("kvmerge: stopping at the end of this block; what is finished is in " + out.folder);
        try (ResultsFolder folder = ResultsFolder.open(out.folder);
                Model loaded = model.load(catalogue)) {
            KvMemory held = held(loaded, compute, caches);
            int stay = held.cells();
            caches.values().forEach(strategy -> CacheChecks.checkModel(loaded, strategy, stay, true));
            int[] part = TextOptions.part(loaded, read, 0, tokens);
            caches.values().forEach(strategy -> Experiment.checkBudget(strategy, stay, block.tokens, part.length));
            Map<String, double[]> traces = new LinkedHashMap<>();
            CacheOptions endless = CacheOptions.of(stay, block.tokens)
                    .with(compute.withCells(held.types()))
                    .withPositionRange(
                            positionRange != null
                                    ? positionRange
                                    : CacheOptions.positionRange(loaded.trainedContext(), stay, block.tokens));
            if (mib != null) {
                System.err.println(held.text(room(loaded, compute), endless, caches.values()));
            }
            if (fullTokens > 0) {
                int n = Math.min(fullTokens, part.length);
                traces.put(
                        Strategies.FULL,
                        read(
                                loaded,
                                Arrays.copyOf(part, n),
                                Strategies.FULL,
                                new Full(),
                                CacheOptions.unlimited(n, block.tokens).with(compute)));
                write(folder, traces, loaded);
            }
            caches.forEach((name, strategy) -> {
                traces.put(name, read(loaded, part, name, strategy, endless));
                write(folder, traces, loaded);
            });
            System.out.print(EndlessTable.of(traces, stretch));
            System.out.println("\nThe stretches and the plot are in " + out.folder + ".");
        }
    }

    private void write(ResultsFolder folder, Map<String, double[]> traces, Model loaded) {
        folder.write("endless.csv", EndlessTable.csv(traces, stretch));
        folder.write("endless.svg", EndlessTable.plot(traces, stretch, loaded.trainedContext()));
    }

    /** The cells of --cells or of --kv-mib. */
    private KvMemory held(Model loaded, ComputeSettings compute, Map<String, Strategy> caches) {
        if (mib == null) {
            return new KvMemory(new CellTypes(model.keyType, model.valueType), cells);
        }
        KvMemory.Room room = room(loaded, compute);
        KvMemory held = null;
        for (Strategy strategy : caches.values()) {
            held = KvMemory.of(room, model.cellTypes(command, room), strategy);
        }
        if (held == null) {
            throw new KvmergeException.Usage("--kv-mib is for compressed caches: name one with --strategies");
        }
        return held;
    }

    private KvMemory.Room room(Model loaded, ComputeSettings compute) {
        return new KvMemory.Room(loaded, mib, block.tokens, 1, compute);
    }

    private static double[] read(Model model, int[] tokens, String name, Strategy strategy, CacheOptions options) {
        try (Progress progress = new Progress(name)) {
            return Endless.read(
                    model,
                    tokens,
                    strategy,
                    options,
                    (at, perplexity) -> progress.update(
                            (double) at / tokens.length,
                            String.format(java.util.Locale.ROOT, "%,d tokens, PPL of late %.2f", at, perplexity)),
                    Interrupt::requested);
        }
    }
}
