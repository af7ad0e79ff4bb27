package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.eval.ContextShift;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.FactsChat;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.FactsReport;
import dev.kvmerge.report.FactsTable;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import dev.kvmerge.strategy.StreamingLlm;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** What a bounded cache remembers of a long conversation. */
@Command(
        name = "facts",
        mixinStandardHelpOptions = true,
        description = {
            "Has a user tell an assistant forty facts in a long conversation, and asks for them at its end: what share "
                    + "is still known, by cache.",
            "Beside it, how often the system prompt's rule is still obeyed along the way. The conversation is read "
                    + "once "
                    + "a cache; each question is asked on its own from there, and forgotten.",
            "The system prompt is pinned. context-shift is what llama.cpp does when a context is full: the system "
                    + "prompt "
                    + "stays, the older half of the rest is dropped."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge facts --tokens 4000 --cells 1024",
            "  kvmerge facts -m qwen2.5-coder-1.5b --out results/facts-qwen --resume"
        })
final class FactsCommand implements Runnable {
    private static final int MOST_TOKENS = 1 << 20; // the longest contexts that models are trained on

    @Spec
    private CommandSpec command;

    @Mixin
    private ModelOptions model;

    @Mixin
    private StrategyOptions settings;

    @Option(
            names = "--strategies",
            split = ",",
            paramLabel = "NAME",
            defaultValue = "full,context-shift,streaming-llm,h2o,entropy-merged",
            description = "what to ask, context-shift among them (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--cells",
            split = ",",
            paramLabel = "N",
            defaultValue = "1024,2048",
            description = "cells that stay (default: ${DEFAULT-VALUE})")
    private List<Integer> cells;

    @Option(
            names = "--kv-mib",
            split = ",",
            paramLabel = "MIB",
            description =
                    "instead of --cells: MiB that llama.cpp may allocate for the cells and a block; the cells, the"
                            + " full cache's too, are of the type that loses least at the least size, unless -ctk or"
                            + " -ctv says which")
    private List<Double> mib = List.of();

    @Option(
            names = "--facts",
            paramLabel = "N",
            defaultValue = "40",
            description = "facts that are told, at most 40 (default: ${DEFAULT-VALUE})")
    private int count;

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "8000",
            description = "length of the conversation, about (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--answer",
            paramLabel = "N",
            defaultValue = "24",
            description = "most tokens of an answer (default: ${DEFAULT-VALUE})")
    private int answer;

    @Option(
            names = "--seed",
            paramLabel = "N",
            defaultValue = "1",
            description = "of names, values and talk (default: ${DEFAULT-VALUE})")
    private long seed;

    @Mixin
    private BlockOption block;

    @Mixin
    private final ResultsOptions out = new ResultsOptions("results/facts");

    @Override
    public void run() {
        check();
        StrategyOptions.refuseOfFull(command, List.of("--cells", "--kv-mib"), strategies);
        ComputeSettings given = model.compute(mib.isEmpty() ? FlashAttention.OFF : FlashAttention.ON);
        model.checkCells(given, settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategies.Settings chosen = settings.settings(model, catalogue, strategies, command);
        // What is wrong is said before anything is loaded.
        List<Strategy> asked = mib.isEmpty()
                ? caches(chosen, cells).stream()
                        .map(Facts.Asked::strategy)
                        .filter(Objects::nonNull)
                        .toList()
                : strategies.stream()
                        .filter(name -> !name.equals(ContextShift.NAME))
                        .map(name -> Strategies.create(name, chosen))
                        .toList();
        ModelOptions.checkBias(given, asked);
        ModelOptions.checkObserved(command, asked);
        try (ResultsFolder folder = out.open(ResultsFolder::hasFacts)) {
            try (Model loaded = model.load(catalogue)) {
                ComputeSettings compute = mib.isEmpty() ? given : given.withCells(types(loaded, given));
                List<Facts.Asked> caches = caches(chosen, mib.isEmpty() ? cells : cellsIn(loaded, compute, asked));
                for (Facts.Asked cache : caches) {
                    if (cache.strategy() != null) {
                        CacheChecks.checkModel(loaded, cache.strategy(), cache.cells(), false);
                    }
                }
                Facts facts = new Facts(
                        loaded,
                        ChatFormat.of(loaded),
                        new Facts.Setup(count, tokens, answer, block.tokens, seed, compute));
                FactsReport header = Provenance.of(
                        loaded,
                        new FactsReport.Settings(
                                count,
                                tokens,
                                answer,
                                block.tokens,
                                seed,
                                compute.threads(),
                                compute.flashAttention().name().toLowerCase(Locale.ROOT),
                                compute.keyType().name().toLowerCase(Locale.ROOT),
                                compute.valueType().name().toLowerCase(Locale.ROOT),
                                model.captures(compute) ? compute.observedQueries() : null),
                        GivenOptions.of(command, "--strategies", "--cells", "--kv-mib"));
                Interrupt.listen("kvmerge: stopping at the end of this block; what is finished is in " + out.folder()
                        + ", go on with --resume");
                print(loaded, facts, ask(facts, caches, header, folder));
            }
        }
    }

    private void check() {
        out.check();
        if (!mib.isEmpty()) {
            StrategyOptions.refuse(command, List.of("--cells"), "goes without --kv-mib");
            mib.forEach(KvMemory::check);
        }
        if (count < 1 || count > FactsChat.MOST) {
            throw new KvmergeException.Usage("--facts must be 1 to " + FactsChat.MOST + ", not " + count);
        }
        if (tokens < 1 || tokens > MOST_TOKENS || answer < 1 || block.tokens < 32 || block.tokens > MOST_TOKENS) {
            throw new KvmergeException.Usage("--tokens must be 1 to " + MOST_TOKENS
                    + ", --answer positive and --block 32 to " + MOST_TOKENS + ": " + tokens + ", " + answer + ", "
                    + block.tokens);
        }
    }

    /** The types of all caches' cells: those for the least of --kv-mib. */
    private CellTypes types(Model loaded, ComputeSettings compute) {
        double least = mib.stream().min(Double::compare).orElseThrow();
        return model.cellTypes(command, new KvMemory.Room(loaded, least, block.tokens, 1, compute));
    }

    /** The cells that stay beside a block in each of --kv-mib. */
    private List<Integer> cellsIn(Model loaded, ComputeSettings compute, List<Strategy> asked) {
        List<Strategy> compressed =
                asked.stream().filter(strategy -> !strategy.keepsAll()).toList();
        return mib.stream()
                .map(size -> {
                    KvMemory.Room room = new KvMemory.Room(loaded, size, block.tokens, 1, compute);
                    KvMemory memory = KvMemory.of(room, compute.cells(), new StreamingLlm(0));
                    CacheOptions options =
                            CacheOptions.of(memory.cells(), block.tokens).with(compute);
                    System.err.println(memory.text(room, options, compressed));
                    return memory.cells();
                })
                .toList();
    }

    /** The full cache once, all others with each number of cells. */
    private List<Facts.Asked> caches(Strategies.Settings chosen, List<Integer> cells) {
        List<Facts.Asked> caches = new ArrayList<>();
        for (String name : new LinkedHashSet<>(strategies)) {
            Strategy strategy = name.equals(ContextShift.NAME) ? null : Strategies.create(name, chosen);
            if (strategy instanceof Full) {
                caches.add(new Facts.Asked(Strategies.FULL, strategy, 0));
                continue;
            }
            for (int n : new LinkedHashSet<>(cells)) {
                if (strategy != null) {
                    Experiment.checkBudget(strategy, n, block.tokens, tokens);
                } else if (n < block.tokens) {
                    throw new KvmergeException.Usage("--cells must hold a block of " + block.tokens + ": " + n);
                } else if (n > tokens) {
                    throw new KvmergeException.Usage("--cells " + n + " are more than the conversation's --tokens "
                            + tokens + ": nothing would be dropped; use fewer cells");
                }
                caches.add(new Facts.Asked(strategy == null ? name : Strategies.label(name, strategy), strategy, n));
            }
        }
        return caches;
    }

    /** What a run is of. */
    private record Which(String cache, String parameters, int cells) {
        static Which of(Facts.Run run) {
            return new Which(run.cache(), run.parameters(), run.cells());
        }
    }

    /** The runs of all caches: those that the folder has, and the others, each written when it is made. */
    private List<Facts.Run> ask(Facts facts, List<Facts.Asked> caches, FactsReport header, ResultsFolder folder) {
        FactsReport begun = out.resume && folder.hasFacts() ? goOn(header, folder.readFacts()) : header;
        KeptResults<Which, Facts.Run> kept =
                new KeptResults<>(begun.runs(), Which::of, results -> folder.write(begun.with(results)));
        List<Facts.Run> asked = new ArrayList<>();
        for (Facts.Asked cache : caches) {
            Which which = new Which(cache.name(), cache.parameters(), cache.cells());
            String number = (asked.size() + 1) + "/" + caches.size();
            asked.add(kept.get(which, () -> ask(facts, cache, number)));
        }
        return asked;
    }

    private FactsReport goOn(FactsReport header, FactsReport before) {
        if (!before.comparable(header)) {
            throw new KvmergeException.Usage("the results in " + out.folder()
                    + " are of another model, version or settings: give the same options, or choose another --out");
        }
        return header.after(before);
    }

    private static Facts.Run ask(Facts facts, Facts.Asked cache, String number) {
        String title = number + " " + cache.name() + (cache.cells() == 0 ? "" : " " + cache.cells());
        Facts.Run run;
        try (Progress progress = new Progress(title)) {
            run = facts.ask(cache, progress::update, Interrupt::requested);
        }
        System.err.printf(
                Locale.ROOT,
                "%s: %d of %d said, %d likeliest, %s%n",
                title,
                run.answers().stream().filter(Facts.Answer::right).count(),
                run.answers().size(),
                run.answers().stream().filter(a -> a.rank() == 1).count(),
                Progress.time(run.seconds()));
        return run;
    }

    private void print(Model loaded, Facts facts, List<Facts.Run> runs) {
        System.out.printf(
                Locale.ROOT,
                "%n%s, %d facts in a conversation of %,d tokens, block %d%n%n",
                loaded.description(),
                count,
                facts.length(),
                block.tokens);
        System.out.println(FactsTable.facts(runs));
        System.out.println(FactsTable.rule(runs));
        System.out.print(FactsTable.legend());
        System.out.println("\nEvery answer is in " + out.folder().resolve("facts.csv") + ".");
    }
}
