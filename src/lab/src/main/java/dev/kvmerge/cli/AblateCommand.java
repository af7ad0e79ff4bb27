package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.Ablation;
import dev.kvmerge.report.ResultsFolder;
import dev.kvmerge.report.Table;
import dev.kvmerge.strategy.Full;
import dev.kvmerge.strategy.Method;
import dev.kvmerge.strategy.Strategies;
import java.math.BigDecimal;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** What each parameter is worth. */
@Command(
        name = "ablate",
        mixinStandardHelpOptions = true,
        description = {
            "Varies one parameter of a strategy at a time and measures the KL divergence from the full cache: a table "
                    + "and a plot each.",
            "Parameters are the strategy's (see its row in results.json), or cells, the share that stays, or block, "
                    + "or queries, those observed of a block. What is finished is not made again.",
            "decay and mass-power are varied without a calibration, which is made for one of each."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge ablate                                         everything, an hour",
            "  kvmerge ablate --vary decay=0.8,0.9,1 --vary bias=none,folded --tokens 2048",
            "  kvmerge ablate --strategy entropy-merged-row \\",
            "      --vary threshold=0.3,0.4,0.5,0.6,0.7"
        })
final class AblateCommand implements Runnable {
    private static final String BLOCK = "block";
    private static final String CELLS = "cells";
    private static final String QUERIES = "queries";
    private static final int USUAL_BLOCK = 128;

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
        EVERYTHING.put(BLOCK, List.of("16", "32", "64", "128", "256", "512"));
        EVERYTHING.put(CELLS, List.of("0.05", "0.1", "0.2", "0.3", "0.5", "0.7", "0.95"));
    }

    private static final Experiment.Extras BESIDE = new Experiment.Extras(true, false);

    /** A parameter's points, and what the full cache differs by from itself. */
    private record Sweep(List<Ablation.Point> points, List<String> floors) {
        /** Adds what one value of the parameter gave in an experiment of its own. */
        void add(String value, Sweep one) {
            points.addAll(one.points);
            floors.add(one.floors.getFirst().replaceFirst("noise floor", "noise floor at " + value));
        }
    }

    @Spec
    private CommandSpec command;

    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

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
    private double compression;

    @Mixin
    private final PartOptions reading = new PartOptions(4096);

    @Option(
            names = "--out",
            paramLabel = "DIR",
            defaultValue = "results/ablate",
            description = "a folder in here for each parameter (default: ${DEFAULT-VALUE})")
    private Path out;

    @Override
    public void run() {
        ComputeSettings compute = model.compute(FlashAttention.OFF);
        model.checkCells(compute, Strategies.Settings.DEFAULT.bias());
        Experiment.cellsFor(1, compression);
        Map<String, List<String>> sweeps = sweeps(compute);
        if (sweeps.keySet().equals(Set.of(CELLS))) {
            StrategyOptions.refuse(command, List.of("--compression"), "goes with other parameters than cells");
        }
        if (sweeps.containsKey(QUERIES) && !model.captures(compute)) {
            throw new KvmergeException.Usage("--vary queries is of captured queries: add -fa on or --observe capture");
        }
        if (sweeps.containsKey(QUERIES)
                && !ModelOptions.observesMass(Strategies.method(strategy, Strategies.Settings.DEFAULT))) {
            throw new KvmergeException.Usage("--vary queries is of captured queries, and " + strategy
                    + " does not look at the attention: vary something else, or name another --strategy");
        }
        ModelOptions.checkObserved(command, varied(sweeps)); // the noise floor alone is none of the things varied
        Catalogue catalogue = Home.catalogue();
        Calibration calibration = StrategyOptions.calibration("auto", model, catalogue);
        Text read = text.read(catalogue);
        TextOptions.holds(read, "--tokens", reading.tokens);
        sweeps.getOrDefault(BLOCK, List.of())
                .forEach(value -> TextOptions.holds(read, "--vary block", Long.parseLong(value)));
        Interrupt.listen(
                "kvmerge: stopping at the end of this block; what is finished is in " + out + ", run again to go on");
        try (ResultsFolder folder = ResultsFolder.open(out);
                Model loaded = model.load(catalogue)) {
            int[] part = reading.of(loaded, read);
            ExperimentRunner runner = new ExperimentRunner(loaded, read, reading.offset, part, compute);
            StringBuilder tables = new StringBuilder();
            sweeps.forEach((parameter, values) -> {
                Sweep sweep = vary(runner, parameter, values, part.length, calibration);
                tables.append(Ablation.table(parameter, sweep.points())).append('\n');
                sweep.floors().forEach(tables::append);
                tables.append('\n');
                folder.write(parameter + ".svg", Ablation.plot(strategy, parameter, sweep.points()));
                folder.write("ablation.md", tables.toString());
            });
            System.out.print(tables);
        }
        System.out.println("The tables are in " + out.resolve("ablation.md") + ", a plot of each beside it.");
    }

    /** One parameter's values, each with what it costs. */
    private Sweep vary(ExperimentRunner runner, String parameter, List<String> values, int n, Calibration calibration) {
        Strategies.Settings calibrated = Strategies.Settings.DEFAULT.with(calibration);
        return switch (parameter) {
            case BLOCK -> varyBlock(runner, values, n, calibrated);
            case CELLS -> varyCells(runner, values, n, calibrated);
            case QUERIES -> varyQueries(runner, values, n, calibrated);
            default ->
                varyParameter(
                        runner,
                        parameter,
                        values,
                        n,
                        OF_CALIBRATION.contains(parameter) ? Strategies.Settings.DEFAULT : calibrated);
        };
    }

    private Sweep varyBlock(ExperimentRunner runner, List<String> values, int n, Strategies.Settings settings) {
        Sweep all = new Sweep(new ArrayList<>(), new ArrayList<>());
        for (String value : values) {
            int block = Integer.parseInt(value);
            if (Strategies.method(strategy, settings).fewestCells(block) > Experiment.cellsFor(n, compression)) {
                System.err.println("kvmerge: left out " + strategy + " at blocks of " + value + ": " + compression
                        + " fewer cells do not hold one and the sinks");
                continue;
            }
            ExperimentRunner.Request request = request(n, block, List.of(strategy), List.of(compression), settings);
            all.add(value, sweep(runner, request, out.resolve(BLOCK).resolve(value), run -> value));
        }
        return all;
    }

    private Sweep varyQueries(ExperimentRunner runner, List<String> values, int n, Strategies.Settings settings) {
        ExperimentRunner.Request request = request(n, USUAL_BLOCK, List.of(strategy), List.of(compression), settings);
        Sweep all = new Sweep(new ArrayList<>(), new ArrayList<>());
        for (String value : values) {
            ExperimentRunner so = runner.observing(Integer.parseInt(value));
            request.options().put("--observe-queries", value);
            all.add(value, sweep(so, request, out.resolve(QUERIES).resolve(value), run -> value));
        }
        return all;
    }

    private Sweep varyCells(ExperimentRunner runner, List<String> values, int n, Strategies.Settings settings) {
        Map<Double, String> byCompression = new LinkedHashMap<>();
        values.forEach(value -> byCompression.put(saved(value), value));
        ExperimentRunner.Request request =
                request(n, USUAL_BLOCK, List.of(strategy), List.copyOf(byCompression.keySet()), settings);
        return sweep(runner, request, out.resolve(CELLS), run -> byCompression.get(run.compression()));
    }

    private Sweep varyParameter(
            ExperimentRunner runner, String parameter, List<String> values, int n, Strategies.Settings settings) {
        Map<String, String> bySpec = new LinkedHashMap<>();
        values.forEach(value -> bySpec.put(spec(parameter, value), value));
        ExperimentRunner.Request request =
                request(n, USUAL_BLOCK, List.copyOf(bySpec.keySet()), List.of(compression), settings);
        return sweep(runner, request, out.resolve(parameter), run -> bySpec.get(run.spec()));
    }

    private ExperimentRunner.Request request(
            int n, int block, List<String> strategies, List<Double> compressions, Strategies.Settings settings) {
        Map<String, String> options = GivenOptions.of(command, "--strategy", "--vary");
        options.put("--strategies", GivenOptions.list(strategies));
        options.put("--compression", GivenOptions.list(compressions));
        if (settings.calibration() == null) {
            options.put("--calibration", "none");
        }
        return new ExperimentRunner.Request(
                Experiment.Mode.stream(n),
                block,
                strategies,
                Experiment.Sizes.of(compressions),
                settings,
                BESIDE,
                options);
    }

    /** Runs an experiment, or what its folder lacks of it: a point for each of its runs but the full cache's. */
    private static Sweep sweep(
            ExperimentRunner runner,
            ExperimentRunner.Request request,
            Path folder,
            Function<Experiment.Run, String> value) {
        try (ResultsFolder results = ResultsFolder.open(folder)) {
            ExperimentRunner.Finished finished = runner.run(request, results, true);
            List<Ablation.Point> points = new ArrayList<>();
            List<String> floors = new ArrayList<>();
            for (Experiment.Run run : finished.runs()) {
                RunResult r = finished.record().result(run);
                if (run.name().equals(Experiment.AGAIN)) {
                    floors.add(Table.floor(r));
                } else if (r.klMean() != null) {
                    points.add(new Ablation.Point(
                            value.apply(run), r.klMean(), r.klSe(), r.perplexity(), r.perplexityFull()));
                }
            }
            return new Sweep(points, floors);
        }
    }

    /** What runs with each value. */
    private List<Method> varied(Map<String, List<String>> sweeps) {
        List<Method> all = new ArrayList<>();
        sweeps.forEach((parameter, values) -> {
            boolean own = !Set.of(BLOCK, CELLS, QUERIES).contains(parameter);
            for (String value : values) {
                all.add(Strategies.method(own ? spec(parameter, value) : strategy, Strategies.Settings.DEFAULT));
            }
        });
        return all;
    }

    private String spec(String parameter, String value) {
        return strategy + ":" + parameter + "=" + value;
    }

    /** Share of the cells that are saved where such a share stays. */
    private static double saved(String stays) {
        try {
            return BigDecimal.ONE.subtract(new BigDecimal(stays)).doubleValue();
        } catch (NumberFormatException e) {
            throw new KvmergeException.Usage(
                    "--vary cells takes shares that stay, as cells=0.1,0.3, not '" + stays + "'");
        }
    }

    /** What to vary, checked before anything is loaded. */
    private Map<String, List<String>> sweeps(ComputeSettings compute) {
        if (Strategies.method(strategy, Strategies.Settings.DEFAULT) instanceof Full) {
            throw new KvmergeException.Usage("the full cache has nothing to vary: name another --strategy");
        }
        Map<String, List<String>> sweeps = new LinkedHashMap<>();
        if (vary == null) {
            sweeps.putAll(EVERYTHING);
        }
        for (String one : vary == null ? List.<String>of() : vary) {
            int equals = one.indexOf('=');
            if (equals <= 0 || equals == one.length() - 1) {
                throw new KvmergeException.Usage(
                        "--vary takes a parameter and its values, as decay=0.8,0.9, not '" + one + "'");
            }
            sweeps.put(
                    one.substring(0, equals), List.of(one.substring(equals + 1).split(",")));
        }
        sweeps.forEach((parameter, values) -> values.forEach(value -> check(parameter, value, compute)));
        return sweeps;
    }

    private void check(String parameter, String value, ComputeSettings compute) {
        switch (parameter) {
            case BLOCK -> {
                if (!value.matches("0*[1-9][0-9]{0,8}")) {
                    throw new KvmergeException.Usage(
                            "--vary block takes numbers of tokens, as block=64,128, not '" + value + "'");
                }
            }
            case CELLS -> Experiment.cellsFor(1, saved(value));
            case QUERIES -> {
                if (!value.matches("[0-9]{1,9}")) {
                    throw new KvmergeException.Usage(
                            "--vary queries takes numbers of a block's queries, as queries=128,32, not '" + value
                                    + "'");
                }
            }
            default ->
                ModelOptions.checkBias(
                        compute, List.of(Strategies.method(spec(parameter, value), Strategies.Settings.DEFAULT)));
        }
    }
}
