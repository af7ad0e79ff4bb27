package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.Calibrations;
import dev.kvmerge.eval.ContextShift;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.TakenOptions;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.strategy.Method;
import dev.kvmerge.strategy.Strategies;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;

/** The strategies' settings. */
final class StrategyOptions {
    /** Those that only a compressed cache uses. */
    static final List<String> NAMES =
            List.of("--sinks", "--recent-share", "--signal", "--threshold", "--bias", "--calibration", "--block");

    /**
     * Refuses options that would have no effect beside what else was given.
     *
     * @param why as "goes with --strategy"
     */
    static void refuse(CommandSpec command, List<String> names, String why) {
        for (String name : names) {
            if (command.commandLine().getParseResult().hasMatchedOption(name)) {
                throw new KvmergeException.Usage(name + " " + why + ": here it would have no effect");
            }
        }
    }

    /** Refuses what only a compressed cache uses where none is asked for but the full one. */
    static void refuseOfFull(CommandSpec command, List<String> names, List<String> strategies) {
        if (onlyFull(strategies)) {
            refuse(command, names, "goes with a strategy other than full");
        }
    }

    /** Whether nothing but the full cache is asked for. */
    static boolean onlyFull(List<String> strategies) {
        return strategies.stream()
                .allMatch(name -> Experiment.Spec.of(name).method().equals(Strategies.FULL));
    }

    @Option(
            names = "--sinks",
            paramLabel = "N",
            defaultValue = "4",
            description = "first tokens that always stay (default: ${DEFAULT-VALUE})")
    int sinks;

    @Option(
            names = "--recent-share",
            paramLabel = "SHARE",
            defaultValue = "0.25",
            description = "share of the budget that entropy-merged leaves to the newest tokens, 0..1 (default: "
                    + "${DEFAULT-VALUE})")
    double recentShare;

    @Option(
            names = "--signal",
            paramLabel = "column|row",
            defaultValue = "column",
            description = "entropy-merged: column is the form that works, row the founding algorithm (default: "
                    + "${DEFAULT-VALUE})")
    String signal;

    @Option(
            names = "--threshold",
            paramLabel = "H",
            defaultValue = "0.5",
            description =
                    "row signal: normalised entropy above which a token is diffuse, 0..1 (default: ${DEFAULT-VALUE})")
    double threshold;

    @Option(
            names = "--bias",
            paramLabel = "none|folded|exact",
            defaultValue = "folded",
            description = "how a merged cell keeps its members' attention mass (default: ${DEFAULT-VALUE})")
    Bias bias;

    @Option(
            names = "--calibration",
            paramLabel = "FILE|auto|none",
            defaultValue = "auto",
            description =
                    "entropy-merged: what 'kvmerge calibrate' made; auto is the one beside the model, or the one that "
                            + "comes with kvmerge for it (default: ${DEFAULT-VALUE})")
    String calibration;

    /**
     * The settings for a model.
     *
     * @param strategies names with their parameters
     * @throws KvmergeException.Usage if an option was given that none of the strategies takes
     */
    Strategies.Settings settings(
            ModelOptions model, Catalogue catalogue, List<String> strategies, CommandSpec command) {
        Strategies.Settings given = settings(calibration(calibration, model, catalogue));
        refuseWithoutEffect(strategies, given, command);
        return given;
    }

    private Strategies.Settings settings(Calibration found) {
        return new Strategies.Settings(sinks, recentShare, signal, threshold, bias, found);
    }

    private static void refuseWithoutEffect(List<String> strategies, Strategies.Settings given, CommandSpec command) {
        Map<String, Strategies.Settings> otherwise = TakenOptions.otherwise(given);
        if (given.calibration() == null) {
            otherwise.remove("--calibration"); // that there is none may be said of any
        }
        List<Method> made = methods(strategies, given);
        otherwise.forEach((option, other) -> {
            if (command.commandLine().getParseResult().hasMatchedOption(option)
                    && methods(strategies, other).equals(made)) {
                throw new KvmergeException.Usage(option + " has no effect on " + String.join(", ", strategies)
                        + ": leave it out, or add a strategy that takes it (docs/strategies.md)");
            }
        });
    }

    private static List<Method> methods(List<String> strategies, Strategies.Settings settings) {
        return strategies.stream()
                .filter(name -> !name.equals(ContextShift.NAME)) // which takes none
                .map(name -> Strategies.method(name, settings))
                .toList();
    }

    /**
     * The calibration that an option means.
     *
     * @param which "none", "auto" or a file
     */
    static Calibration calibration(String which, ModelOptions model, Catalogue catalogue) {
        return switch (which) {
            case "none" -> null;
            case "auto" -> Calibrations.of(catalogue.resolve(model.model, Catalogue.Kind.MODEL));
            default -> Calibrations.read(Path.of(which));
        };
    }
}
