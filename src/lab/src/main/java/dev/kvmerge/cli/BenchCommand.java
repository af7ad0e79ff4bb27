package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Cache;
import dev.kvmerge.eval.Clock;
import dev.kvmerge.eval.SequencesBench;
import dev.kvmerge.eval.SpeedBench;
import dev.kvmerge.eval.Text;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.SpeedTable;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Speed against llama.cpp without us. */
@Command(
        name = "bench",
        mixinStandardHelpOptions = true,
        description = {
            "Times reading a prompt and generating after it: llama.cpp alone, and through compressed caches, in turns.",
            "Speeds are ratios to llama.cpp alone in the same turn, at its fastest setting of flash attention for that"
                    + " test; medians over turns. Without -fa, or with -fa auto, compressed caches run with both"
                    + " settings too and the faster counts.",
            "Overhead is observing, planning and rewriting as a share of the time in llama.cpp.",
            "With --sequences, generations of several sequences in one context are timed instead, with -fa on unless"
                    + " it is given. Speeds are all their tokens a second, as ratios to the first number of sequences."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge bench -p 2048,8192 -n 64 --compression 0.7 -o md",
            "  kvmerge bench -p 2048,4096,8000 --cells 1024",
            "  kvmerge bench -p 2048 --compression 0.5 --sequences 1,8"
        })
final class BenchCommand implements Runnable {
    @Spec
    private CommandSpec command;

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
            names = "--cells",
            paramLabel = "N",
            split = ",",
            description = "instead of --compression: cells that stay, whatever the prompt's length")
    private List<Integer> cells = List.of();

    @Mixin
    private BlockOption block;

    @Mixin
    private PromptBlockOption promptBlock;

    @Option(names = "-b", hidden = true)
    private void oldBlock(int n) {
        Renamed.warn("-b", "--block");
        block.tokens = n;
    }

    @Option(
            names = "--sequences",
            paramLabel = "N",
            split = ",",
            description = "numbers of sequences to generate at once, each after a prompt of its own")
    private int[] sequences;

    @Option(
            names = "--clock",
            paramLabel = "wall|cpu",
            defaultValue = "wall",
            description = "what is timed: the clock, or the CPU time of the one thread that -t 1 computes with, which "
                    + "other programs disturb less (default: ${DEFAULT-VALUE})")
    private Clock clock;

    @Option(
            names = {"-o", "--output"},
            paramLabel = "md|csv|json",
            defaultValue = "md",
            description = "form of the table (default: ${DEFAULT-VALUE})")
    private String output;

    @Override
    public void run() {
        check();
        StrategyOptions.refuseOfFull(command, List.of("--compression", "--cells"), strategies);
        Catalogue catalogue = Home.catalogue();
        int largest = promptBlock.tokens(block.tokens);
        Strategies.Settings chosen = settings.settings(model, catalogue, strategies, command);
        List<Cache> caches = cells.isEmpty()
                ? Cache.list("llama.cpp", strategies, compressions, chosen)
                : Cache.ofCells("llama.cpp", strategies, cells, chosen);
        for (int prompt : prompts) {
            caches.forEach(cache -> cache.check(largest, prompt));
        }
        ComputeSettings compute = model.compute(FlashAttention.AUTO);
        if (clock == Clock.CPU && compute.threads() != 1) {
            throw new KvmergeException.Usage("--clock cpu times one thread: use -t 1 with it");
        }
        if (clock == Clock.CPU && !model.isOnCpu()) {
            throw new KvmergeException.Usage("--clock cpu sees nothing of a device's time: use it with --device cpu");
        }
        model.checkCells(compute, model.flashAttention == FlashAttention.ON ? bias(caches) : Bias.NONE);
        ModelOptions.checkObserved(
                command,
                bias(caches) == Bias.EXACT // then the graph is stopped whatever the options say
                        ? List.of()
                        : caches.stream().map(Cache::strategy).toList());
        Text source = text.read(catalogue);
        for (int prompt : prompts) {
            TextOptions.holds(source, "-p with -n", (long) prompt + generated);
        }
        TextOptions.holds(source, largest > block.tokens ? "--prompt-block" : "--block", largest);
        Interrupt.listen("kvmerge: stopping after the run in work; nothing was written");
        int longest = Arrays.stream(prompts).max().orElseThrow();
        try (Model loaded = model.load(catalogue)) {
            int[] tokens = TextOptions.slice(loaded, source, 0, longest + generated);
            List<SpeedBench.Row> rows;
            try (Progress progress = new Progress("bench")) {
                Consumer<String> told = what -> progress.update(-1, what);
                rows = sequences == null
                        ? alone(loaded, compute, caches, tokens).run(told, Interrupt::requested)
                        : together(loaded, compute, caches, tokens).run(told, Interrupt::requested);
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

    private SpeedBench alone(Model loaded, ComputeSettings compute, List<Cache> caches, int[] tokens) {
        SpeedBench.Setup setup = new SpeedBench.Setup(
                prompts,
                generated,
                repetitions,
                block.tokens,
                promptBlock.tokens(block.tokens),
                compute,
                clock,
                settings(loaded, null),
                settings(loaded, bias(caches)));
        return new SpeedBench(loaded, setup, caches, tokens);
    }

    private SequencesBench together(Model loaded, ComputeSettings compute, List<Cache> caches, int[] tokens) {
        FlashAttention setting = settings(loaded, bias(caches)).getLast(); // on, if it can be
        return new SequencesBench(
                loaded,
                new SequencesBench.Setup(
                        prompts,
                        generated,
                        repetitions,
                        block.tokens,
                        promptBlock.tokens(block.tokens),
                        compute.withFlashAttention(setting),
                        clock,
                        sequences),
                caches,
                tokens);
    }

    /** The bias that decides which settings of flash attention there are, by --bias or a strategy's own parameter. */
    private static Bias bias(List<Cache> caches) {
        return caches.stream().anyMatch(cache -> cache.strategy().needs().bias() == Bias.EXACT)
                ? Bias.EXACT
                : Bias.NONE;
    }

    /**
     * The settings of flash attention that a cache can have.
     *
     * @param bias of a compressed cache, which also goes by -fa; null of llama.cpp alone
     */
    private List<FlashAttention> settings(Model loaded, Bias bias) {
        boolean given = bias != null && model.flashAttention != null && model.flashAttention != FlashAttention.AUTO;
        List<FlashAttention> all = new ArrayList<>();
        if (given) {
            all.add(model.flashAttention);
            return all;
        }
        if (!model.valueType.isQuantised()) { // which llama.cpp takes with flash attention only
            all.add(FlashAttention.OFF);
        }
        if (bias != Bias.EXACT && !loaded.flashAttentionAborts()) {
            all.add(FlashAttention.ON);
        }
        if (all.isEmpty()) {
            throw new KvmergeException.Usage("no setting of flash attention goes with -ctv " + model.valueType.text()
                    + (bias == Bias.EXACT ? " and an exact bias: use a folded one" : " and this model: use -ctv f16"));
        }
        return all;
    }

    private void check() {
        for (int prompt : prompts) {
            Least.of("-p", prompt, 2);
        }
        Least.of("-n", generated, 0);
        cells.forEach(n -> Least.of("--cells", n, 1));
        if (!cells.isEmpty()) {
            StrategyOptions.refuse(command, List.of("--compression"), "goes without --cells");
        }
        Least.of("-r", repetitions, 1);
        Least.of("--block", block.tokens, 1);
        if (sequences != null
                && (generated == 0
                        || sequences.length == 0
                        || Arrays.stream(sequences).anyMatch(n -> n < 1 || n > ContextOptions.MOST_SEQUENCES))) {
            throw new KvmergeException.Usage("--sequences are 1 to " + ContextOptions.MOST_SEQUENCES
                    + " each, and need tokens to generate (-n)");
        }
        if (!List.of("md", "csv", "json").contains(output)) {
            throw new KvmergeException.Usage("-o is md, csv or json, not '" + output + "'");
        }
    }
}
