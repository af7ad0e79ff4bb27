package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Cache;
import dev.kvmerge.eval.SpeedBench;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.SpeedTable;
import java.util.Arrays;
import java.util.List;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Speed against llama.cpp without us. */
@Command(
        name = "bench",
        mixinStandardHelpOptions = true,
        description = {
            "Times reading a prompt and generating after it: llama.cpp alone, and through compressed caches, in turns.",
            "Speeds are ratios to llama.cpp alone in the same turn, medians over turns; overhead is observing, "
                    + "planning and rewriting as a share of the time in llama.cpp."
        },
        footer = {"", "Example:", "  kvmerge bench -p 2048,8192 -n 64 --compression 0.7 -o md"})
final class BenchCommand implements Runnable {
    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

    @Mixin
    private StrategyOptions settings;

    @Option(
            names = {"-p", "--n-prompt"},
            paramLabel = "N",
            split = ",",
            defaultValue = "512,2048,4096,8000",
            description = "prompt lengths, tokens (default: ${DEFAULT-VALUE})")
    private int[] prompts;

    @Option(
            names = {"-n", "--n-gen"},
            paramLabel = "N",
            defaultValue = "128",
            description =
                    "tokens to generate after each prompt; 128, a block, has its one compression in it; 0 for none "
                            + "(default: ${DEFAULT-VALUE})")
    private int generated;

    @Option(
            names = {"-r", "--repetitions"},
            paramLabel = "N",
            defaultValue = "5",
            description = "turns (default: ${DEFAULT-VALUE})")
    private int repetitions;

    @Option(
            names = "--strategies",
            paramLabel = "NAME",
            split = ",",
            defaultValue = "entropy-merged",
            description = "beside llama.cpp alone (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--compression",
            paramLabel = "SHARE",
            split = ",",
            defaultValue = "0.7",
            description = "shares of the cells to save (default: ${DEFAULT-VALUE})")
    private List<Double> compressions;

    @Option(
            names = {"-b", "--block"},
            paramLabel = "N",
            defaultValue = "128",
            description = "tokens between two compressions (default: ${DEFAULT-VALUE})")
    private int block;

    @Option(
            names = {"-o", "--output"},
            paramLabel = "md|csv|json",
            defaultValue = "md",
            description = "form of the table (default: ${DEFAULT-VALUE})")
    private String output;

    @Override
    public void run() {
        check();
        Catalogue catalogue = Home.catalogue();
        List<Cache> caches = Cache.list("llama.cpp", strategies, compressions, settings.settings(model, catalogue));
        for (int prompt : prompts) {
            caches.forEach(cache -> cache.check(block, prompt));
        }
        ComputeSettings compute = model.compute(FlashAttention.OFF);
        model.checkCells(compute, settings.bias);
        Text source = text.read(catalogue);
        Interrupt.listen("kvmerge: stopping after the run in work; nothing was written");
        int longest = Arrays.stream(prompts).max().orElseThrow();
        try (Model loaded = model.load(catalogue)) {
            int[] tokens = TextOptions.slice(loaded, source, 0, longest + generated);
            SpeedBench.Setup setup = new SpeedBench.Setup(prompts, generated, repetitions, block, compute);
            List<SpeedBench.Row> rows;
            try (Progress progress = new Progress("bench")) {
                rows = new SpeedBench(loaded, setup, caches, tokens)
                        .run(what -> progress.update(-1, what), Interrupt::requested);
            }
            System.out.print(SpeedTable.of(
                    rows,
                    new SpeedTable.Machine(
                            loaded.description(),
                            loaded.bytes(),
                            loaded.parameters(),
                            loaded.backend().name(),
                            compute.threads()),
                    output));
        }
    }

    private void check() {
        if (prompts.length == 0 || Arrays.stream(prompts).anyMatch(p -> p < 2) || generated < 0 || repetitions < 1) {
            throw new KvmergeException.Usage("-p must be 2 and more, -n must not be negative, -r must be positive");
        }
        if (block < 1) {
            throw new KvmergeException.Usage("--block must be positive, not " + block);
        }
        if (!List.of("md", "csv", "json").contains(output)) {
            throw new KvmergeException.Usage("-o is md, csv or json, not '" + output + "'");
        }
    }
}
