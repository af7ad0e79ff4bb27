package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.report.Ablation;
import dev.kvmerge.report.Report;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.strategy.Strategies;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** What each parameter is worth. */
@Command(
        name = "ablate",
        mixinStandardHelpOptions = true,
        description = {
            "Varies one parameter of a strategy at a time and measures the KL divergence from the full cache: a table and a plot each.",
            "Parameters are the strategy's (see its row in results.json), or cells, the share that stays, or block. What is finished is not made again.",
            "decay and mass-power are varied without a calibration, which is made for one of each."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge ablate                                              everything, an hour",
            "  kvmerge ablate --vary decay=0.8,0.9,1 --vary bias=none,folded --tokens 2048",
            "  kvmerge ablate --strategy entropy-merged-row --vary threshold=0.3,0.4,0.5,0.6,0.7"
        })
final class AblateCommand implements Runnable {
    /** Parameters that a calibration was made for: they are varied without one. */
    private static final Set<String> OF_CALIBRATION = Set.of("decay", "mass-power");

    private static final Map<String, List<String>> EVERYTHING = new LinkedHashMap<>();

    static {
        EVERYTHING.put("sinks", List.of("0", "1", "2", "4", "8"));
        EVERYTHING.put("recent-share", List.of("0.05", "0.15", "0.25", "0.4", "0.6"));
        EVERYTHING.put("decay", List.of("0.5", "0.8", "0.9", "0.95", "1"));
        EVERYTHING.put("largest-group", List.of("1", "2", "4", "8", "16"));
        EVERYTHING.put("key-cost", List.of("0.2", "0.4", "0.8", "1.6", "3.2"));
        EVERYTHING.put("mass-power", List.of("1", "1.5", "2"));
        EVERYTHING.put("bias", List.of("none", "folded", "exact"));
        EVERYTHING.put("block", List.of("16", "32", "64", "128", "256", "512"));
        EVERYTHING.put("cells", List.of("0.05", "0.1", "0.2", "0.3", "0.5", "0.7", "0.95"));
    }

    @Option(
            names = "--strategy",
            paramLabel = "NAME",
            defaultValue = "entropy-merged",
            description = "whose parameters (default: ${DEFAULT-VALUE})")
    private String strategy;

    @Option(
            names = "--vary",
            paramLabel = "PARAMETER=V,V,...",
            description = "a parameter and its values; may be given again (default: all of entropy-merged's)")
    private List<String> vary;

    @Option(
            names = "--compression",
            paramLabel = "SHARE",
            defaultValue = "0.9",
            description = "share of the cells to save while other things vary (default: ${DEFAULT-VALUE})")
    private String compression;

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "4096",
            description = "tokens of the text to read (default: ${DEFAULT-VALUE})")
    private String tokens;

    @Option(
            names = "--offset",
            paramLabel = "T",
            defaultValue = "0",
            description = "first token of the text (default: ${DEFAULT-VALUE})")
    private String offset;

    @Option(
            names = {"-f", "--file"},
            paramLabel = "TEXT",
            defaultValue = "alice",
            description = "a UTF-8 text file, or a name from 'kvmerge models' (default: ${DEFAULT-VALUE})")
    private String text;

    @Option(
            names = {"-m", "--model"},
            paramLabel = "MODEL",
            defaultValue = "smollm2-135m",
            description = "a GGUF file, or a name from 'kvmerge models' (default: ${DEFAULT-VALUE})")
    private String model;

    @Option(
            names = {"-t", "--threads"},
            paramLabel = "N",
            description = "CPU threads (default: all cores)")
    private String threads;

    @Option(
            names = "--out",
            paramLabel = "DIR",
            defaultValue = "results/ablate",
            description = "a folder in here for each parameter (default: ${DEFAULT-VALUE})")
    private Path out;

    @Override
    public void run() {
        Map<String, List<String>> sweeps = sweeps();
        StringBuilder tables = new StringBuilder();
        sweeps.forEach((parameter, values) -> {
            List<Ablation.Point> points = new ArrayList<>();
            if (parameter.equals("block")) {
                for (String value : values) {
                    if (!holds(value)) {
                        System.err.println("kvmerge: left out " + strategy + " at blocks of " + value + ": "
                                + compression + " fewer cells do not hold one and the sinks");
                        continue;
                    }
                    Path folder = out.resolve(parameter).resolve(value);
                    experiment(folder, List.of(strategy), compression, value, "auto");
                    points.addAll(read(folder, r -> value));
                }
            } else if (parameter.equals("cells")) {
                List<String> saved = values.stream()
                        .map(v -> java.math.BigDecimal.ONE
                                .subtract(new java.math.BigDecimal(v))
                                .toPlainString())
                        .toList();
                experiment(out.resolve(parameter), List.of(strategy), String.join(",", saved), "128", "auto");
                points.addAll(read(out.resolve(parameter), r -> java.math.BigDecimal.ONE
                        .subtract(java.math.BigDecimal.valueOf(r.compression()))
                        .toPlainString()));
            } else {
                List<String> specs = values.stream()
                        .map(v -> strategy + ":" + parameter + "=" + v)
                        .toList();
                experiment(
                        out.resolve(parameter),
                        specs,
                        compression,
                        "128",
                        OF_CALIBRATION.contains(parameter) ? "none" : "auto");
                points.addAll(read(out.resolve(parameter), r -> r.strategy()
                        .substring(r.strategy().lastIndexOf('=') + 1)));
            }
            tables.append(Ablation.table(parameter, points)).append('\n');
            try (ResultsFolder folder = ResultsFolder.open(out)) {
                folder.write(parameter + ".svg", Ablation.plot(strategy, parameter, points));
                folder.write("ablation.md", tables.toString());
            }
        });
        System.out.print(tables);
        System.out.println("The tables are in " + out.resolve("ablation.md") + ", a plot of each beside it.");
    }

    /** Whether the cells that are left hold what the strategy needs for a block. */
    private boolean holds(String block) {
        try {
            int cells = Experiment.cellsFor(Integer.parseInt(tokens), Double.parseDouble(compression));
            return Strategies.create(strategy, Strategies.Settings.DEFAULT).fewestCells(Integer.parseInt(block))
                    <= cells;
        } catch (NumberFormatException e) {
            return true; // the experiment says what is wrong
        }
    }

    private Map<String, List<String>> sweeps() {
        if (vary == null) {
            return EVERYTHING;
        }
        Map<String, List<String>> sweeps = new LinkedHashMap<>();
        for (String one : vary) {
            int equals = one.indexOf('=');
            if (equals <= 0 || equals == one.length() - 1) {
                throw new KvmergeException.Usage(
                        "--vary takes a parameter and its values, as decay=0.8,0.9, not '" + one + "'");
            }
            String parameter = one.substring(0, equals);
            List<String> values = List.of(one.substring(equals + 1).split(","));
            if (!parameter.equals("block") && !parameter.equals("cells")) {
                values.forEach(
                        v -> Strategies.create(strategy + ":" + parameter + "=" + v, Strategies.Settings.DEFAULT));
            }
            sweeps.put(parameter, values);
        }
        return sweeps;
    }

    private void experiment(Path folder, List<String> strategies, String saved, String block, String calibration) {
        List<String> arguments = new ArrayList<>(List.of(
                "experiment",
                "-m",
                model,
                "-f",
                text,
                "--tokens",
                tokens,
                "--offset",
                offset,
                "--block",
                block,
                "--compression",
                saved,
                "--strategies",
                String.join(",", strategies),
                "--calibration",
                calibration,
                "--out",
                folder.toString()));
        if (threads != null) {
            arguments.addAll(List.of("-t", threads));
        }
        if (Files.exists(folder.resolve("results.json"))) {
            arguments.add("--resume");
        }
        int status = Main.run(arguments.toArray(String[]::new));
        if (status == Main.INTERRUPTED) {
            throw new Experiment.Cancelled();
        }
        if (status != CommandLine.ExitCode.OK) {
            throw new KvmergeException("the experiment in " + folder + " failed: its message is above");
        }
    }

    private List<Ablation.Point> read(
            Path folder, java.util.function.Function<dev.kvmerge.eval.RunResult, String> value) {
        try (ResultsFolder results = ResultsFolder.open(folder)) {
            Report report = results.read();
            return report.runs().stream()
                    .filter(r -> r.klMean() != null)
                    .map(r -> new Ablation.Point(
                            value.apply(r), r.klMean(), r.klSe(), r.perplexity(), r.perplexityFull()))
                    .toList();
        }
    }
}
