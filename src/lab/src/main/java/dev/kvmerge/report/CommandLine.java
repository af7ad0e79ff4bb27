package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * The command that makes an experiment's runs again, from what its results say. Settings of strategies that are not in
 * their names (--sinks and the like) are those of the parameters in results.json, and are not repeated.
 */
final class CommandLine {
    private static final Pattern PREFILL = Pattern.compile("prefill (\\d{1,9}) of (\\d{1,9})");

    private CommandLine() {}

    static String of(Report report) {
        Report.Settings settings = report.settings();
        List<String> words = new ArrayList<>(List.of("bin/kvmerge", "experiment"));
        add(words, "-m", report.model().path());
        add(words, "-f", report.text().name());
        add(words, "--offset", report.text().offset());
        add(words, "--tokens", settings.tokens());
        Matcher prefill = PREFILL.matcher(settings.mode());
        if (prefill.matches()) {
            int read = Integer.parseInt(prefill.group(1));
            add(words, "--prefill", read);
            add(words, "--score", Integer.parseInt(prefill.group(2)) - read);
        } else {
            add(words, "--block", settings.block());
        }
        // Quantised V cells of a run's own turn it on for that run: "-fa off" would refuse them.
        if (!settings.flashAttention().equals("off") || names(report).noneMatch(CommandLine::needsFlashAttention)) {
            add(words, "-fa", settings.flashAttention());
        }
        if (report.runs().stream().anyMatch(run -> "stop".equals(run.observation()))) {
            add(words, "--observe", "stop");
        }
        if (report.runs().stream()
                .anyMatch(run -> "capture".equals(run.observation()) && "off".equals(run.flashAttention()))) {
            add(words, "--observe", "capture");
        }
        report.runs().stream()
                .map(RunResult::observedQueries)
                .filter(Objects::nonNull)
                .findFirst()
                .ifPresent(queries -> add(words, "--observe-queries", queries));
        if (report.runs().stream().noneMatch(CommandLine::hasChosenTypes)) {
            add(words, "-ctk", settings.keyType());
            add(words, "-ctv", settings.valueType());
        }
        String names = names(report).distinct().collect(Collectors.joining(","));
        if (!names.isEmpty()) {
            add(words, "--strategies", names);
        }
        sizes(report, words);
        return String.join(" ", words);
    }

    private static void sizes(Report report, List<String> words) {
        String mib = report.runs().stream()
                .map(RunResult::kvMib)
                .filter(Objects::nonNull)
                .distinct()
                .map(String::valueOf)
                .collect(Collectors.joining(","));
        String compressions = report.runs().stream()
                .map(RunResult::compression)
                .filter(share -> share > 0)
                .distinct()
                .map(String::valueOf)
                .collect(Collectors.joining(","));
        if (!mib.isEmpty()) {
            add(words, "--kv-mib", mib);
        } else if (!compressions.isEmpty()) {
            add(words, "--compression", compressions);
        }
    }

    private static void add(List<String> words, String option, Object value) {
        words.add(option);
        words.add(value.toString());
    }

    /** The names that were asked for; older files have the strategies' alone. */
    private static Stream<String> names(Report report) {
        return report.runs().stream()
                .filter(run -> !run.strategy().equals(Experiment.AGAIN))
                .map(run -> run.asked() == null ? run.strategy() : run.asked());
    }

    private static boolean needsFlashAttention(String name) {
        try {
            return Experiment.Spec.of(name).needsFlashAttention();
        } catch (KvmergeException e) {
            return false; // results that name cells of no type
        }
    }

    private static boolean hasChosenTypes(RunResult run) {
        return run.asked() != null && !run.asked().equals(run.strategy());
    }
}
