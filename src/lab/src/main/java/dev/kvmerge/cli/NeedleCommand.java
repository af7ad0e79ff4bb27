package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.eval.Cache;
import dev.kvmerge.eval.Retrieval;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.report.RetrievalTable;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Finding one fact in a long text. */
@Command(
        name = "needle",
        aliases = "passkey",
        mixinStandardHelpOptions = true,
        description = {
            "Hides a number in a long text, compresses, and then asks for it: what share of the numbers is found, by "
                    + "depth.",
            "The question is not known when the cache is compressed. The text is a book, or with --junk that of "
                    + "llama.cpp's passkey example."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge needle --tokens 2048 --compression 0.7",
            "  kvmerge needle --junk --trials 5 --strategies full,entropy-merged,h2o,snapkv"
        })
final class NeedleCommand implements Runnable {
    private static final int MOST_TOKENS = 1 << 20; // the longest contexts that models are trained on

    @Spec
    private CommandSpec command;

    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

    @Mixin
    private StrategyOptions settings;

    @Option(names = "--junk", description = "llama.cpp's passkey text: the same five sentences, again and again")
    private boolean junk;

    @Option(
            names = "--strategies",
            split = ",",
            paramLabel = "NAME",
            defaultValue = "full,entropy-merged,h2o,snapkv,streaming-llm",
            description = "what to ask; full always is (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--compression",
            split = ",",
            paramLabel = "SHARE",
            defaultValue = "0.7",
            description = "shares of the cells to save (default: ${DEFAULT-VALUE})")
    private List<Double> compressions;

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "1024",
            description = "length of the text (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--depths",
            split = ",",
            paramLabel = "SHARE",
            defaultValue = "0,0.25,0.5,0.75,1",
            description = "where the number lies (default: ${DEFAULT-VALUE})")
    private double[] depths;

    @Option(
            names = "--trials",
            paramLabel = "N",
            defaultValue = "3",
            description = "numbers a depth (default: ${DEFAULT-VALUE})")
    private int trials;

    @Option(
            names = "--seed",
            paramLabel = "N",
            defaultValue = "1",
            description = "of the numbers (default: ${DEFAULT-VALUE})")
    private long seed;

    @Mixin
    private BlockOption block;

    @Mixin
    private final OutOption out = new OutOption("results/needle");

    @Override
    public void run() {
        if (junk) {
            StrategyOptions.refuse(command, List.of("-f"), "goes without --junk");
        }
        StrategyOptions.refuseOfFull(command, List.of("--compression"), strategies);
        Least.of("--tokens", tokens, 64);
        Least.of("--trials", trials, 1);
        Least.of("--block", block.tokens, 32);
        if (tokens > MOST_TOKENS) {
            throw new KvmergeException.Usage("--tokens can be " + MOST_TOKENS + " at most, not " + tokens);
        }
        if (block.tokens > tokens) {
            throw new KvmergeException.Usage("--block " + block.tokens + " is more than the text's --tokens " + tokens
                    + ": nothing would be compressed; use a smaller --block or more --tokens");
        }
        if (Arrays.stream(depths).anyMatch(d -> !(d >= 0 && d <= 1))) {
            throw new KvmergeException.Usage("--depths must be 0..1, not " + Arrays.toString(depths));
        }
        ComputeSettings compute = model.compute(FlashAttention.OFF);
        model.checkCells(compute, settings.bias);
        Catalogue catalogue = Home.catalogue();
        List<Cache> caches = Cache.list(
                Strategies.FULL, strategies, compressions, settings.settings(model, catalogue, strategies, command));
        ModelOptions.checkBias(compute, caches.stream().map(Cache::strategy).toList());
        ModelOptions.checkObserved(command, caches.stream().map(Cache::strategy).toList());
        caches.forEach(cache -> cache.check(block.tokens, tokens));
        Retrieval.Puzzle puzzle =
                junk ? Retrieval.Puzzle.passkey() : Retrieval.Puzzle.needle(book(text.read(catalogue)));
        Interrupt.listen("kvmerge: stopping after the question in work; no table was written");
        try (ResultsFolder folder = ResultsFolder.open(out.folder);
                Model loaded = model.load(catalogue)) {
            caches.forEach(cache -> CacheChecks.checkModel(loaded, cache.strategy(), cache.cells(tokens), false));
            Retrieval.Setup setup = new Retrieval.Setup(tokens, depths, trials, seed, block.tokens, compute);
            Retrieval retrieval = new Retrieval(loaded, puzzle, setup);
            List<Retrieval.Row> rows = new ArrayList<>();
            for (Cache cache : caches) {
                String title =
                        cache.name() + (cache.isFull() ? "" : " " + Math.round(100 * cache.compression()) + " %");
                try (Progress progress = new Progress(title)) {
                    rows.add(retrieval.ask(cache, what -> progress.update(-1, what), Interrupt::requested));
                }
            }
            folder.write("needle.csv", RetrievalTable.csv(rows, depths));
            System.out.printf(
                    Locale.ROOT,
                    "%n%s, a number hidden in %,d tokens of %s, %d trials a depth%n%n",
                    loaded.description(),
                    tokens,
                    junk ? "junk" : text.file,
                    trials);
            System.out.print(RetrievalTable.of(rows, depths));
            System.out.println("\nThe table is in " + out.folder.resolve("needle.csv") + ".");
        }
    }

    private static String book(Text text) {
        return " " + text.content().replaceAll("\\s+", " ").strip();
    }
}
