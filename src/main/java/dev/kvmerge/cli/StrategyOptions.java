package dev.kvmerge.cli;

import dev.kvmerge.kernels.Bias;
import dev.kvmerge.strategy.Strategies;
import picocli.CommandLine.Option;

/** The strategies' settings. */
final class StrategyOptions {
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
            description =
                    "share of the budget that entropy-merged leaves to the newest tokens, 0..1 (default: ${DEFAULT-VALUE})")
    double recentShare;

    @Option(
            names = "--signal",
            paramLabel = "column|row",
            defaultValue = "column",
            description =
                    "entropy-merged: column is the form that works, row the founding algorithm (default: ${DEFAULT-VALUE})")
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

    Strategies.Settings settings() {
        return new Strategies.Settings(sinks, recentShare, signal, threshold, bias);
    }
}
