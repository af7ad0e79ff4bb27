package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.cache.Timings;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

/** Everything once, in seconds. */
@Command(
        name = "quickstart",
        mixinStandardHelpOptions = true,
        description =
                "Checks in seconds that everything works: fills a cache with random tokens and compresses it with "
                        + "each strategy.",
        footer = {"", "Example:", "  kvmerge quickstart"})
final class QuickstartCommand implements Runnable {
    private static final int CELLS = 192; // and no fewer than a sliding window has positions
    private static final int BLOCK = 64;
    private static final int BEYOND = 192; // tokens that do not fit into the cells

    @Mixin
    private ModelOptions model;

    @Mixin
    private final OutOption out = new OutOption("results/quickstart");

    @Override
    public void run() {
        ComputeSettings compute = model.compute(FlashAttention.OFF);
        model.checkCells(compute, Strategies.Settings.DEFAULT.bias());
        Catalogue catalogue = Home.catalogue();
        try (ResultsFolder folder = ResultsFolder.open(out.folder);
                Model loaded = model.load(catalogue)) {
            done("loaded " + loaded.description() + " with llama.cpp "
                    + loaded.library().version());
            int cells = Math.max(CELLS, Math.ceilDiv(loaded.slidingWindow(), BLOCK) * BLOCK);
            int[] tokens = new Random(1)
                    .ints(cells + BEYOND + 1, 0, loaded.vocabularySize())
                    .toArray();
            List<String> rows = new ArrayList<>(List.of("strategy,cells,used,kv_bytes,tokens_per_second"));
            for (String name : List.of(Strategies.FULL, "streaming-llm", "h2o", "entropy-merged")) {
                rows.add(tryOut(loaded, name, tokens, cells, compute));
            }
            folder.write("quickstart.csv", String.join("\n", rows) + "\n");
            done("saved the results to " + out.folder.resolve("quickstart.csv"));
        }
        System.out.println("All works. Now try 'kvmerge experiment'.");
    }

    /** Reads all tokens but the last, and the last after the compression. */
    private String tryOut(Model loaded, String name, int[] tokens, int cells, ComputeSettings compute) {
        Strategy strategy = Strategies.create(name, Strategies.Settings.DEFAULT);
        int read = tokens.length - 1;
        CacheOptions options = (strategy.keepsAll()
                        ? CacheOptions.unlimited(read + 1, BLOCK)
                        : CacheOptions.of(cells, BLOCK))
                .with(compute);
        try (CompressedContext context = new CompressedContext(loaded, strategy, options)) {
            for (int at = 0; at < read; at += BLOCK) {
                context.decode(java.util.Arrays.copyOfRange(tokens, at, at + BLOCK));
            }
            int expected = strategy.keepsAll() ? read : cells;
            if (context.used() != expected) {
                throw new KvmergeException(
                        name + " left " + context.used() + " cells where it should leave " + expected);
            }
            context.decode(new int[] {tokens[read]});
            float logit = context.logits().getAtIndex(java.lang.foreign.ValueLayout.JAVA_FLOAT, 0);
            if (!Float.isFinite(logit)) {
                throw new KvmergeException(name + ": decoding after the compression gives no finite logits");
            }
            Timings t = context.timings();
            double speed = 1e9 * (read + 1) / t.total();
            done(String.format(
                    Locale.ROOT,
                    "%s: %d tokens in %d cells, %.1f MiB of K and V, decoding goes on",
                    name,
                    read,
                    expected,
                    context.info().bytes() / 1048576.0));
            return String.format(
                    Locale.ROOT,
                    "%s,%d,%d,%d,%.1f",
                    name,
                    expected,
                    context.used(),
                    context.info().bytes(),
                    speed);
        }
    }

    private static void done(String what) {
        System.out.println("\u2713 " + what);
    }
}
