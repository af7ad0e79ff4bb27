package dev.kvmerge.cli;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Text;
import dev.kvmerge.eval.Trace;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.Plots;
import dev.kvmerge.report.Report;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.report.Table;
import dev.kvmerge.strategy.Strategies;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** The main job: what does a smaller cache cost? */
@Command(
        name = "experiment",
        mixinStandardHelpOptions = true,
        description =
                "Streams a text through the full cache and through compressed ones, and says what each loses and saves.",
        footer = {
            "",
            "Examples:",
            "  kvmerge experiment --strategies full,entropy-merged,h2o,streaming-llm --compression 0.7,0.9 --tokens 4096",
            "  kvmerge experiment -m path/to/llama-2-7b.Q4_K_M.gguf -f book.txt --out results/llama-2",
            "  kvmerge experiment --out results --resume      goes on after Ctrl-C"
        })
final class ExperimentCommand implements Runnable {
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
            description = "what to compare; full always runs, to be compared with (default: ${DEFAULT-VALUE})")
    private List<String> strategies;

    @Option(
            names = "--compression",
            split = ",",
            paramLabel = "SHARE",
            defaultValue = "0.7,0.9",
            description = "shares of the text's cells to save (default: ${DEFAULT-VALUE})")
    private List<Double> compressions;

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "4096",
            description = "tokens of the text to read; 0 for all (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--offset",
            paramLabel = "T",
            defaultValue = "0",
            description = "first token of the text (default: ${DEFAULT-VALUE})")
    private int offset;

    @Option(
            names = "--block",
            paramLabel = "N",
            defaultValue = "128",
            description = "tokens between two compressions (default: ${DEFAULT-VALUE})")
    private int block;

    @Option(
            names = "--prefill",
            paramLabel = "N",
            description =
                    "instead of streaming: read N tokens through the full cache, compress once, then score --score tokens while the"
                            + " cache grows; over as many windows as --tokens holds")
    private Integer prefill;

    @Option(
            names = "--score",
            paramLabel = "N",
            defaultValue = "256",
            description = "with --prefill: tokens scored after it (default: ${DEFAULT-VALUE})")
    private int score;

    @Option(
            names = "--out",
            paramLabel = "DIR",
            defaultValue = "results",
            description = "where results go (default: ${DEFAULT-VALUE})")
    private Path out;

    @Option(names = "--resume", description = "go on with the experiment in --out")
    private boolean resume;

    @Option(names = "--overwrite", description = "replace the results in --out")
    private boolean overwrite;

    @Override
    public void run() {
        if (resume && overwrite) {
            throw new KvmergeException.Usage("--resume and --overwrite exclude each other");
        }
        if (block <= 0) {
            throw new KvmergeException.Usage("--block must be positive, not " + block);
        }
        if (prefill != null && (prefill < 2 || score < 2 || (tokens != 0 && prefill + score > tokens))) {
            throw new KvmergeException.Usage(
                    "--prefill and --score must be 2 and more, and together fit into --tokens: " + prefill + ", "
                            + score + ", " + tokens);
        }
        model.checkCells(model.flashAttention(FlashAttention.OFF), settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategies.Settings chosen = settings.settings(model, catalogue);
        strategies.forEach(name -> Strategies.create(name, chosen)); // a wrong name is said before anything is loaded
        compressions.forEach(c -> Experiment.cellsFor(1, c));
        Text read = text.read(catalogue);
        try (ResultsFolder folder = ResultsFolder.open(out)) {
            if (folder.hasResults() && !resume && !overwrite) {
                throw new KvmergeException.Usage("there are results in " + out
                        + " already: go on with --resume, replace them with --overwrite, or choose another --out");
            }
            try (Model loaded = model.load(catalogue)) {
                run(loaded, read, folder, chosen);
            }
        }
    }

    private void run(Model loaded, Text read, ResultsFolder folder, Strategies.Settings chosen) {
        int[] part = TextOptions.slice(loaded, read, offset, tokens);
        Experiment.Mode mode = Experiment.Mode.stream(part.length);
        if (prefill != null) {
            mode = new Experiment.Mode(prefill, prefill + score);
            part = java.util.Arrays.copyOf(part, part.length / mode.window() * mode.window());
        }
        FlashAttention flashAttention = model.flashAttention(FlashAttention.OFF);
        Experiment.Setup setup = new Experiment.Setup(
                part,
                mode,
                block,
                model.threads(),
                model.ubatch,
                flashAttention,
                model.keyType,
                model.valueType,
                folder.path());
        try (Experiment experiment = new Experiment(loaded, setup, strategies, compressions, chosen)) {
            run(loaded, read, folder, part, experiment);
        }
    }

    private void run(Model loaded, Text read, ResultsFolder folder, int[] part, Experiment experiment) {
        Report report = describe(loaded, read, part.length, experiment.mode());
        Map<String, Experiment.Outcome> done = resume ? finished(folder, report, experiment) : new LinkedHashMap<>();
        Interrupt.listen(
                "kvmerge: stopping at the end of this block; what is finished is in " + out + ", go on with --resume");
        Experiment.Outcome full = done.get(Strategies.FULL);
        int number = 0;
        for (Experiment.Run run : experiment.runs()) {
            number++;
            if (!done.containsKey(run.id())) {
                String title = String.format(
                        Locale.ROOT, "%d/%d %-24s", number, experiment.runs().size(), run.id());
                Experiment.Outcome outcome;
                try (Progress progress = new Progress(title)) {
                    outcome = experiment.make(
                            run,
                            full,
                            (at, perplexity, speed) -> progress.update(
                                    (double) at / part.length,
                                    String.format(
                                            Locale.ROOT,
                                            "%,d of %,d tokens, PPL %.3f, %.0f tokens/s",
                                            at,
                                            part.length,
                                            perplexity,
                                            speed)),
                            Interrupt::requested);
                }
                done.put(run.id(), outcome);
                folder.writeTrace(run.id(), outcome.trace());
                folder.write(report.with(
                        done.values().stream().map(Experiment.Outcome::result).toList()));
                System.err.println(title.strip() + ": " + summary(outcome.result()));
            }
            if (run.strategy() == null) {
                full = done.get(run.id());
            }
        }
        experiment.deleteFullPredictions();
        Map<String, Trace> traces = new LinkedHashMap<>();
        done.forEach((id, outcome) -> traces.put(id, outcome.trace()));
        List<RunResult> results =
                done.values().stream().map(Experiment.Outcome::result).toList();
        draw(folder, results, traces);
        System.out.println();
        System.out.printf(
                Locale.ROOT,
                "%s, %,d tokens of %s from token %,d, %s, block %d, %d threads, flash attention %s%n%n",
                report.model().description(),
                part.length,
                report.text().name(),
                offset,
                report.settings().mode(),
                block,
                model.threads(),
                report.settings().flashAttention());
        System.out.print(Table.of(results));
        System.out.println();
        System.out.print(Table.comparisons(results, traces));
        System.out.print(Table.savedWithQuantisation(results, model.keyType, model.valueType));
        System.out.println();
        System.out.println("Written to " + out + ": results.json, results.csv, traces/, and plots (*.svg).");
    }

    /** A machine without fonts cannot draw; the figures are safe by then, so that is a warning. */
    private static void draw(ResultsFolder folder, List<RunResult> results, Map<String, Trace> traces) {
        try {
            Plots.of(results, traces).forEach(folder::write);
        } catch (RuntimeException | LinkageError | InternalError e) {
            if (e instanceof KvmergeException) {
                throw e;
            }
            System.err.println("kvmerge: the plots could not be drawn (" + e
                    + "): install fontconfig and a font, then run again with --resume");
        }
    }

    private static String summary(RunResult run) {
        return String.format(
                Locale.ROOT,
                "PPL %.3f%s, %.0f tokens/s",
                run.perplexity(),
                run.klMean() == null ? "" : String.format(Locale.ROOT, ", KL %.4f", run.klMean()),
                run.tokensPerSecond());
    }

    /** The runs that are whole on disk and belong to this experiment. */
    private Map<String, Experiment.Outcome> finished(ResultsFolder folder, Report now, Experiment experiment) {
        Map<String, Experiment.Outcome> done = new LinkedHashMap<>();
        if (!folder.hasResults()) {
            return done;
        }
        Report before = folder.read();
        if (!before.comparable(now)) {
            throw new KvmergeException.Usage(
                    "the results in " + out
                            + " are of another model, text, version or settings: give the same options, or choose another --out");
        }
        for (Experiment.Run run : experiment.runs()) {
            before.runs().stream()
                    .filter(r -> r.id().equals(run.id()) && r.cells() == run.cells() && sameParameters(r, run))
                    .findFirst()
                    .ifPresent(result -> {
                        Trace trace = folder.readTrace(run.id(), result.tokens());
                        if (trace != null) {
                            done.put(run.id(), new Experiment.Outcome(result, trace));
                        }
                    });
        }
        // Runs that are left have to be compared with the full cache's predictions: without those, the full run is made
        // again.
        if (done.size() < experiment.runs().size() && !experiment.hasFullPredictions()) {
            done.remove(Strategies.FULL);
        }
        return done;
    }

    private static boolean sameParameters(RunResult result, Experiment.Run run) {
        Map<String, Object> parameters =
                run.strategy() == null ? Map.of() : run.strategy().parameters();
        return result.parameters().toString().equals(parameters.toString());
    }

    private Report describe(Model loaded, Text read, int n, Experiment.Mode mode) {
        String architecture = loaded.metadata("general.architecture");
        String keyLength = loaded.metadata(architecture + ".attention.key_length");
        String embedding = loaded.metadata(architecture + ".embedding_length");
        Integer headDim = keyLength != null
                ? Integer.valueOf(keyLength)
                : embedding != null
                        ? Integer.valueOf(embedding) / loaded.shape().heads()
                        : null;
        String description = loaded.description();
        String gpu = loaded.library().devices().stream()
                .filter(LlamaLibrary.Device::gpu)
                .map(LlamaLibrary.Device::description)
                .findFirst()
                .orElse(null);
        String sha256;
        try (Progress progress = new Progress("checksum of " + loaded.path().getFileName())) {
            progress.update(-1, "");
            sha256 = Hash.sha256(loaded.path());
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + loaded.path() + ": " + e, e);
        }
        return new Report(
                new Report.Versions(
                        Main.Version.text(),
                        loaded.library().version(),
                        Runtime.version().toString()),
                new Report.Machine(
                        cpu(),
                        Runtime.getRuntime().availableProcessors(),
                        Kvmerge.instructionSet(),
                        loaded.backend().name().toLowerCase(Locale.ROOT),
                        loaded.backend() == Backend.CPU ? null : gpu),
                new Report.ModelInfo(
                        loaded.path().getFileName().toString(),
                        sha256,
                        architecture,
                        description,
                        loaded.shape().layers(),
                        loaded.shape().heads(),
                        loaded.shape().kvHeads(),
                        headDim,
                        description.substring(description.lastIndexOf(' ') + 1)),
                new Report.TextInfo(read.path().getFileName().toString(), read.sha256(), offset),
                new Report.Settings(
                        n,
                        mode.text(),
                        block,
                        model.threads(),
                        model.flashAttention(FlashAttention.OFF).name().toLowerCase(Locale.ROOT),
                        model.keyType.name().toLowerCase(Locale.ROOT),
                        model.valueType.name().toLowerCase(Locale.ROOT)),
                new ArrayList<>());
    }

    static String cpu() {
        try {
            for (String line : Files.readAllLines(Path.of("/proc/cpuinfo"))) {
                if (line.startsWith("model name")) {
                    return line.substring(line.indexOf(':') + 1).strip();
                }
            }
        } catch (IOException e) {
            // Not Linux.
        }
        return System.getProperty("os.arch");
    }
}
