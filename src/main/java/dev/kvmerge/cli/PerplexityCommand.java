package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.ChunkedPerplexity;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.util.Locale;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** llama-perplexity's numbers, and the same through a compressed cache. */
@Command(
        name = "perplexity",
        mixinStandardHelpOptions = true,
        description =
                "Prints the perplexity that llama.cpp's llama-perplexity prints, or that of the same tokens through a compressed cache.",
        footer = {
            "",
            "Examples:",
            "  kvmerge perplexity -m smollm2-135m -f alice -c 2048 -fa off --chunks 4",
            "  kvmerge perplexity -m smollm2-135m -f alice -c 2048 --chunks 4 --strategy entropy-merged --compression 0.7"
        })
final class PerplexityCommand implements Runnable {
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

    @Option(
            names = "--block",
            paramLabel = "N",
            defaultValue = "128",
            description = "tokens between two compressions (default: ${DEFAULT-VALUE})")
    private int block;

    @Override
    public void run() {
        Strategy chosen = strategy == null ? null : Strategies.create(strategy, settings.settings());
        if (chosen == null && (cells != null || compression != null)) {
            throw new KvmergeException.Usage("--cells and --compression need a --strategy other than full");
        }
        if (chosen != null && (cells == null) == (compression == null)) {
            throw new KvmergeException.Usage("--strategy needs either --cells or --compression");
        }
        if (chosen != null) {
            model.checkCells(model.flashAttention(FlashAttention.OFF), settings.bias);
        }
        int budget = cells != null ? cells : compression != null ? Experiment.cellsFor(chunk, compression) : 0;
        ChunkedPerplexity.Options options = new ChunkedPerplexity.Options(
                chunk,
                batch,
                model.ubatch,
                chunks,
                model.threads(),
                model.flashAttention(chosen == null ? FlashAttention.AUTO : FlashAttention.OFF),
                model.keyType,
                model.valueType);
        if (chosen != null) {
            Experiment.checkBudget(chosen, budget, block, chunk);
        }
        Catalogue catalogue = Home.catalogue();
        Text read = text.read(catalogue);
        try (Model loaded = model.load(catalogue)) {
            int[] tokens = loaded.tokenize(read.content());
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
                    System.out.flush();
                };
                estimate = chosen == null
                        ? perplexity.full(tokens, listener)
                        : perplexity.compressed(
                                tokens,
                                chosen,
                                budget,
                                block,
                                listener,
                                done -> progress.update((double) done / ((long) n * chunk), ""));
            }
            System.out.println();
            System.out.printf(
                    Locale.ROOT, "Final estimate: PPL = %.4f +/- %.5f%n", estimate.perplexity(), estimate.error());
        }
    }
}
