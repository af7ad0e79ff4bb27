package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.ChunkedPerplexity;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.KlStatistics;
import dev.kvmerge.report.Table;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** llama-perplexity's numbers, and the same through a compressed cache. */
@Command(
        name = "perplexity",
        mixinStandardHelpOptions = true,
        description =
                "Prints the perplexity that llama.cpp's llama-perplexity prints, or that of the same tokens through a "
                        + "compressed cache.",
        footer = {
            "",
            "Examples:",
            "  kvmerge perplexity -m smollm2-135m -f alice -c 2048 -fa off --chunks 4",
            "  kvmerge perplexity -m smollm2-135m -f alice -c 2048 --chunks 4 \\",
            "      --strategy entropy-merged --compression 0.7"
        })
final class PerplexityCommand implements Runnable {
    @Spec
    private CommandSpec command;

    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

    @Mixin
    private StrategyOptions settings;

    @Option(
            names = {"-c", "--ctx-size"},
            paramLabel = "N",
            defaultValue = "512",
            description = "tokens a chunk (default: ${DEFAULT-VALUE})")
    private int chunk;

    @Option(
            names = {"-b", "--batch-size"},
            paramLabel = "N",
            defaultValue = "2048",
            description = "most tokens a decode of the full cache (default: ${DEFAULT-VALUE})")
    private int batch;

    @Option(names = "--chunks", paramLabel = "N", defaultValue = "-1", description = "most chunks (default: all)")
    private int chunks;

    @Option(
            names = "--strategy",
            paramLabel = "NAME",
            description = "score through a cache compressed by this strategy")
    private String strategy;

    @Option(names = "--cells", paramLabel = "N", description = "cells that stay after each block")
    private Integer cells;

    @Option(
            names = "--compression",
            paramLabel = "SHARE",
            description = "share of a chunk's cells to save, instead of --cells")
    private Double compression;

    @Mixin
    private BlockOption block;

    @Option(
            names = "--kl-divergence",
            description = "stream the first -c tokens through the full cache and the compressed one, and print "
                    + "llama-perplexity's"
                    + " --kl-divergence report: its base is the full cache, its Q the compressed one")
    private boolean klDivergence;

    @Override
    public void run() {
        Strategies.Settings found = strategy == null || strategy.equals(Strategies.FULL)
                ? Strategies.Settings.DEFAULT
                : settings.settings(model, Home.catalogue(), List.of(strategy), command);
        Strategy chosen = Strategies.create(strategy == null ? Strategies.FULL : strategy, found);
        boolean full = chosen.keepsAll();
        if (full) {
            StrategyOptions.refuse(command, StrategyOptions.NAMES, "goes with --strategy");
            StrategyOptions.refuse(command, List.of("--observe", "--observe-queries"), "goes with --strategy");
        }
        if (!full) {
            StrategyOptions.refuse(command, List.of("-b"), "goes without --strategy");
        }
        if (klDivergence) {
            StrategyOptions.refuse(command, List.of("--chunks"), "goes without --kl-divergence");
        }
        if (full && (cells != null || compression != null)) {
            throw new KvmergeException.Usage("--cells and --compression need a --strategy other than full");
        }
        if (!full && (cells == null) == (compression == null)) {
            throw new KvmergeException.Usage("--strategy needs either --cells or --compression");
        }
        ComputeSettings compute = model.compute(full ? FlashAttention.AUTO : FlashAttention.OFF);
        if (!full) {
            ModelOptions.checkObserved(command, List.of(chosen));
            model.checkCells(compute, settings.bias);
        }
        int budget = cells != null ? cells : compression != null ? Experiment.cellsFor(chunk, compression) : 0;
        ChunkedPerplexity.Options options = new ChunkedPerplexity.Options(chunk, full ? batch : chunk, chunks, compute);
        if (!full) {
            Experiment.checkBudget(chosen, budget, block.tokens, chunk);
        }
        if (klDivergence) {
            if (full) {
                throw new KvmergeException.Usage("--kl-divergence compares a --strategy with the full cache: name one");
            }
            divergence(budget, compute, found);
            return;
        }
        Catalogue catalogue = Home.catalogue();
        Text read = text.read(catalogue);
        TextOptions.holds(read, "-c", klDivergence ? chunk : 2L * chunk);
        TextOptions.holds(read, "--block", strategy == null ? 0 : block.tokens);
        try (Model loaded = model.load(catalogue)) {
            int[] tokens = Text.tokens(loaded, read.content());
            ChunkedPerplexity perplexity = new ChunkedPerplexity(loaded, options);
            int n = perplexity.chunksOf(tokens.length);
            System.err.printf(
                    Locale.ROOT,
                    "calculating perplexity over %d chunks, n_ctx=%d, batch_size=%d%n",
                    n,
                    chunk,
                    options.batch());
            ChunkedPerplexity.Estimate estimate;
            try (Progress progress = new Progress("perplexity")) {
                ChunkedPerplexity.Listener listener = (number, value) -> {
                    progress.clear();
                    System.out.printf(Locale.ROOT, "[%d]%.4f,", number, value);
                    Output.check();
                };
                estimate = full
                        ? perplexity.full(tokens, listener)
                        : perplexity.compressed(
                                tokens,
                                chosen,
                                budget,
                                block.tokens,
                                listener,
                                done -> progress.update((double) done / ((long) n * chunk), ""));
            }
            System.out.println();
            System.out.printf(
                    Locale.ROOT, "Final estimate: PPL = %.4f +/- %.5f%n", estimate.perplexity(), estimate.error());
        }
    }

    private void divergence(int budget, ComputeSettings compute, Strategies.Settings found) {
        Catalogue catalogue = Home.catalogue();
        Text read = text.read(catalogue);
        TextOptions.holds(read, "-c", klDivergence ? chunk : 2L * chunk);
        TextOptions.holds(read, "--block", strategy == null ? 0 : block.tokens);
        Path work = null;
        try {
            work = Files.createTempDirectory("kvmerge");
            try (Model loaded = model.load(catalogue)) {
                int[] tokens = TextOptions.slice(loaded, read, 0, chunk);
                Experiment.Setup setup = new Experiment.Setup(
                        tokens,
                        Experiment.Mode.stream(tokens.length),
                        block.tokens,
                        compute,
                        work,
                        new Experiment.Extras(true, false));
                try (Experiment experiment = new Experiment(
                        loaded,
                        setup,
                        List.of(strategy),
                        Experiment.Sizes.of(List.of(1 - (double) budget / chunk)),
                        found)) {
                    List<Experiment.Outcome> outcomes = new ArrayList<>();
                    for (Experiment.Run run : experiment.runs()) {
                        try (Progress progress = new Progress(run.id())) {
                            outcomes.add(experiment.make(
                                    run,
                                    outcomes.isEmpty() ? null : outcomes.getFirst(),
                                    (done, perplexity, speed) -> progress.update((double) done / chunk, ""),
                                    Interrupt::requested));
                        }
                    }
                    experiment.deleteFullPredictions();
                    System.out.print(KlStatistics.of(
                            outcomes.get(0).trace(), outcomes.get(1).trace(), budget + 1));
                    System.err.print(Table.floor(outcomes.get(2).result())); // not in llama-perplexity's report
                }
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot make a temporary folder: " + e.getMessage(), e);
        } finally {
            if (work != null) {
                delete(work);
            }
        }
    }

    private static void delete(Path folder) {
        try (Stream<Path> files = Files.list(folder)) {
            for (Path file : files.toList()) {
                Files.deleteIfExists(file);
            }
            Files.deleteIfExists(folder);
        } catch (IOException e) {
            System.err.println("kvmerge: cannot delete " + folder + ": " + e.getMessage());
        }
    }
}
