package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.eval.Cache;
import dev.kvmerge.eval.Ruler;
import dev.kvmerge.eval.RulerTask;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.report.RulerReport;
import dev.kvmerge.report.RulerTable;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Tasks of RULER's kinds, by cache. */
@Command(
        name = "ruler",
        mixinStandardHelpOptions = true,
        description = {
            "Asks for what long texts tell, as RULER does (Hsieh et al., 2024): hidden numbers, variables, frequent "
                    + "words; what share of the answers is right, by cache.",
            "A text is read and compressed once a cache, before any question is known; then each question is asked on "
                    + "its own from there, and forgotten. Texts are drawn by a seed."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge ruler --tokens 2048 --tasks niah_multikey_1,vt --texts 2",
            "  kvmerge ruler -m qwen2.5-coder-1.5b --out results/ruler-qwen --resume"
        })
final class RulerCommand implements Runnable {
    private static final int MOST_TOKENS = 1 << 20; // the longest contexts that models are trained on
    private static final int LEAST_TOKENS = 512;
    private static final int MOST_TEXTS = 1000;

    @Spec
    private CommandSpec command;

    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

    @Mixin
    private StrategyOptions settings;

    @Option(
            names = "--tasks",
            split = ",",
            paramLabel = "NAME",
            defaultValue = "niah_multikey_1,niah_multiquery,niah_multivalue,niah_multikey_2,vt,cwe,fwe",
            description = "what to ask, niah_single_2 among them, which 'kvmerge needle' asks in its own way (default:"
                    + " ${DEFAULT-VALUE})")
    private List<String> tasks;

    @Option(
            names = "--strategies",
            split = ",",
            paramLabel = "NAME",
            defaultValue = "full,entropy-merged,h2o,snapkv,streaming-llm",
            description = "caches to ask; full always is (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--compression",
            split = ",",
            paramLabel = "SHARE",
            defaultValue = "0.5,0.7,0.9",
            description = "shares of the cells to save (default: ${DEFAULT-VALUE})")
    private List<Double> compressions;

    @Option(
            names = "--tokens",
            split = ",",
            paramLabel = "N",
            defaultValue = "4096,8192",
            description = "lengths of the texts, question and answer included (default: ${DEFAULT-VALUE})")
    private List<Integer> tokens;

    @Option(
            names = "--texts",
            paramLabel = "N",
            defaultValue = "4",
            description =
                    "texts of each kind and length; more of them make smaller errors (default:" + " ${DEFAULT-VALUE})")
    private int texts;

    @Option(
            names = "--known",
            description = "the questions about a text stand before it, too, so that they are known when it is"
                    + " compressed")
    private boolean known;

    @Option(
            names = "--whole",
            description = "read each text whole and compress it once, as kvpress does, instead of in blocks")
    private boolean whole;

    @Option(
            names = "--seed",
            paramLabel = "N",
            defaultValue = "1",
            description = "of the texts (default: ${DEFAULT-VALUE})")
    private long seed;

    @Mixin
    private BlockOption block;

    @Mixin
    private final ResultsOptions out = new ResultsOptions("results/ruler");

    @Override
    public void run() {
        check();
        List<RulerTask> asked = RulerTask.of(tasks);
        ComputeSettings compute = model.compute(FlashAttention.OFF);
        model.checkCells(compute, settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategies.Settings chosen = settings.settings(model, catalogue, strategies, command);
        List<Cache> caches = Cache.list(Strategies.FULL, strategies, compressions, chosen).stream()
                .distinct() // a reading counts once
                .toList();
        ModelOptions.checkBias(compute, caches.stream().map(Cache::strategy).toList());
        ModelOptions.checkObserved(command, caches.stream().map(Cache::strategy).toList());
        for (int length : tokens) {
            caches.forEach(cache -> cache.check(whole ? 1 : block.tokens, length));
        }
        Text book = text.read(catalogue);
        try (ResultsFolder folder = out.open(ResultsFolder::hasRuler);
                Model loaded = model.load(catalogue)) {
            for (int length : tokens) {
                if (length > loaded.trainedContext()) {
                    throw new KvmergeException.Usage("the model was trained on " + loaded.trainedContext()
                            + " positions: give fewer --tokens than " + length);
                }
                caches.forEach(cache -> CacheChecks.checkModel(loaded, cache.strategy(), cache.cells(length), false));
            }
            Ruler.Setup setup = new Ruler.Setup(asked, known, whole ? Ruler.WHOLE : block.tokens, seed, compute);
            Ruler ruler = new Ruler(loaded, ChatFormat.of(loaded), book.content(), setup);
            RulerReport header = Provenance.of(
                    loaded,
                    book,
                    settings(setup),
                    GivenOptions.of(command, "--strategies", "--compression", "--tokens", "--texts"));
            Interrupt.listen("kvmerge: stopping at the end of this block; what is finished is in " + out.folder()
                    + ", go on with --resume");
            print(loaded, read(ruler, caches, header, folder), header.settings().tasks());
        }
    }

    private void check() {
        out.check();
        StrategyOptions.refuseOfFull(command, List.of("--compression", "--block"), strategies);
        if (whole) {
            StrategyOptions.refuse(command, List.of("--block"), "goes without --whole");
        }
        Least.of("--texts", texts, 1);
        Least.of("--block", block.tokens, 32);
        if (texts > MOST_TEXTS) {
            throw new KvmergeException.Usage("--texts can be " + MOST_TEXTS + " at most, not " + texts);
        }
        for (int length : tokens) {
            Least.of("--tokens", length, LEAST_TOKENS);
            if (length > MOST_TOKENS) {
                throw new KvmergeException.Usage("--tokens can be " + MOST_TOKENS + " at most, not " + length);
            }
            if (!whole && block.tokens > length) {
                throw new KvmergeException.Usage("--block " + block.tokens + " is more than a text's --tokens " + length
                        + ": nothing would be compressed; use a smaller --block or more --tokens");
            }
        }
    }

    private RulerReport.Settings settings(Ruler.Setup setup) {
        ComputeSettings compute = setup.compute();
        return new RulerReport.Settings(
                setup.tasks().stream().map(RulerTask::label).toList(),
                setup.known(),
                setup.block(),
                setup.seed(),
                compute.threads(),
                compute.flashAttention().name().toLowerCase(Locale.ROOT),
                compute.keyType().name().toLowerCase(Locale.ROOT),
                compute.valueType().name().toLowerCase(Locale.ROOT),
                model.captures(compute) ? compute.observedQueries() : null);
    }

    /** What a reading is of. */
    private record Which(Ruler.Item item, String cache, String parameters, double compression) {
        static Which of(Ruler.Reading reading) {
            return new Which(reading.item(), reading.cache(), reading.parameters(), reading.compression());
        }
    }

    /** All texts into all caches, text by text: those readings that the folder has, and the others as they are made. */
    private List<Ruler.Reading> read(Ruler ruler, List<Cache> caches, RulerReport header, ResultsFolder folder) {
        RulerReport begun = out.resume && folder.hasRuler() ? goOn(header, folder.readRuler()) : header;
        KeptResults<Which, Ruler.Reading> kept =
                new KeptResults<>(begun.readings(), Which::of, results -> folder.write(begun.with(results)));
        List<Ruler.Reading> asked = new ArrayList<>();
        List<Ruler.Item> items = ruler.items(List.copyOf(new LinkedHashSet<>(tokens)), texts);
        int all = items.size() * caches.size();
        for (Ruler.Item item : items) {
            for (Cache cache : caches) {
                Which which = new Which(item, cache.name(), cache.parameters(), cache.compression());
                String title = (asked.size() + 1) + "/" + all + " " + item.kind() + " " + (item.index() + 1)
                        + String.format(Locale.ROOT, ", %,d tokens, ", item.tokens()) + title(cache);
                asked.add(kept.get(which, () -> ask(ruler, item, cache, title)));
            }
        }
        return asked;
    }

    private RulerReport goOn(RulerReport header, RulerReport before) {
        if (!before.comparable(header)) {
            throw new KvmergeException.Usage("the results in " + out.folder()
                    + " are of another model, text, version or settings: give the same options, or choose another"
                    + " --out");
        }
        return header.after(before);
    }

    private static String title(Cache cache) {
        return cache.name() + (cache.isFull() ? "" : " " + Math.round(100 * cache.compression()) + " %");
    }

    private static Ruler.Reading ask(Ruler ruler, Ruler.Item item, Cache cache, String title) {
        Ruler.Reading reading;
        try (Progress progress = new Progress(title)) {
            reading = ruler.ask(item, cache, progress::update, Interrupt::requested);
        }
        System.err.printf(
                Locale.ROOT,
                "%s: %d of %d, %s%n",
                title,
                reading.answers().stream().mapToInt(Ruler.Answer::found).sum(),
                reading.answers().stream().mapToInt(a -> a.expected().size()).sum(),
                Progress.time(reading.seconds()));
        return reading;
    }

    private void print(Model loaded, List<Ruler.Reading> readings, List<String> labels) {
        System.out.printf(
                Locale.ROOT,
                "%n%s, %d texts of each kind, prose of %s, questions %s, %s%n%n",
                loaded.description(),
                texts,
                text.file,
                known ? "known" : "not known",
                whole ? "compressed once" : "block " + block.tokens);
        System.out.println(RulerTable.of(readings, labels));
        System.out.print(RulerTable.legend());
        System.out.println("\nEvery answer is in " + out.folder().resolve("ruler.csv") + ".");
    }
}
