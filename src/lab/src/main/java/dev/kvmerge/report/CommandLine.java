package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.Ruler;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.TakenOptions;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * The command that makes results again, from what they say: the options that were given, and beside them what those
 * leave to defaults. Older files do not say the options: settings of strategies that are not in their names (--sinks
 * and the like) are then not repeated.
 */
final class CommandLine {
    private static final Pattern PREFILL = Pattern.compile("prefill (\\d{1,9}) of (\\d{1,9})");
    private static final Pattern PLAIN = Pattern.compile("[A-Za-z0-9_./:=,@%+-]+"); // to a shell

    private final String name;
    private final Map<String, String> options = new LinkedHashMap<>();

    private CommandLine(String name, Report.ModelInfo model, Report.Machine machine) {
        this.name = name;
        add("-m", model.path());
        if (machine != null && machine.device() != null && !machine.device().equals("cpu")) {
            add("--device", machine.device());
        }
    }

    /** Of an experiment. */
    static String of(Report report) {
        Report.Settings settings = report.settings();
        CommandLine command = new CommandLine("experiment", report.model(), report.machine());
        command.add("-f", report.text().name());
        command.add("--offset", report.text().offset());
        command.add("--tokens", settings.tokens());
        Matcher prefill = PREFILL.matcher(settings.mode());
        if (prefill.matches()) {
            int read = Integer.parseInt(prefill.group(1));
            command.add("--prefill", read);
            command.add("--score", Integer.parseInt(prefill.group(2)) - read);
        } else {
            command.add("--block", settings.block());
        }
        if (report.options() == null) {
            command.guess(report);
        } else {
            command.options.putAll(report.options());
        }
        return command.text();
    }

    /** Of RULER's tasks: every cache at every compression and length that the folder has. */
    static String of(RulerReport report) {
        RulerReport.Settings settings = report.settings();
        List<Ruler.Reading> readings = report.readings();
        CommandLine command = new CommandLine("ruler", report.model(), report.machine());
        command.add("-f", report.text().name());
        command.add("--tasks", String.join(",", settings.tasks()));
        command.add("--tokens", list(readings.stream().map(r -> r.item().tokens())));
        command.add(
                "--texts",
                1L + readings.stream().mapToInt(r -> r.item().index()).max().orElse(0));
        command.add("--seed", settings.seed());
        if (settings.known()) {
            command.add("--known", "");
        }
        if (settings.block() == Ruler.WHOLE) {
            command.add("--whole", "");
        }
        command.cells(settings.flashAttention(), settings.keyType(), settings.valueType());
        command.add("--strategies", list(readings.stream().map(Ruler.Reading::cache)));
        List<Ruler.Reading> compressed =
                readings.stream().filter(r -> r.compression() > 0).toList();
        if (!compressed.isEmpty()) {
            command.add("--compression", list(compressed.stream().map(Ruler.Reading::compression)));
            if (settings.block() != Ruler.WHOLE) {
                command.add("--block", settings.block());
            }
            command.addGiven(report.options(), compressed.stream().map(Ruler.Reading::cache));
        }
        return command.text();
    }

    /** Of a conversation's facts: every cache with each number of cells that the folder has. */
    static String of(FactsReport report) {
        FactsReport.Settings settings = report.settings();
        List<Facts.Run> runs = report.runs();
        CommandLine command = new CommandLine("facts", report.model(), report.machine());
        command.add("--facts", settings.facts());
        command.add("--tokens", settings.tokens());
        command.add("--answer", settings.answer());
        command.add("--block", settings.block());
        command.add("--seed", settings.seed());
        command.cells(settings.flashAttention(), settings.keyType(), settings.valueType());
        command.add("--strategies", list(runs.stream().map(Facts.Run::cache)));
        List<Facts.Run> compressed = runs.stream().filter(r -> r.cells() > 0).toList();
        if (!compressed.isEmpty()) {
            command.add("--cells", list(compressed.stream().map(Facts.Run::cells)));
            command.addGiven(report.options(), compressed.stream().map(Facts.Run::cache));
        }
        return command.text();
    }

    /** A command that goes on with what a folder has. */
    static String resuming(String command, Path folder) {
        return command + " --out " + quoted(folder.toString()) + " --resume";
    }

    private void add(String option, Object value) {
        options.put(option, value.toString());
    }

    /**
     * Adds what was given, but for options that none of the caches takes and the command would refuse: those are of
     * caches that a stopped call had not come to, or are in names, as --signal is in "entropy-merged-row".
     */
    private void addGiven(Map<String, String> given, Stream<String> caches) {
        if (given != null) {
            options.putAll(TakenOptions.of(given, caches.distinct().toList()));
        }
    }

    private void cells(String flashAttention, String keyType, String valueType) {
        add("-fa", flashAttention);
        add("-ctk", keyType);
        add("-ctv", valueType);
    }

    private static String list(Stream<?> values) {
        return values.distinct().map(String::valueOf).collect(Collectors.joining(","));
    }

    private String text() {
        StringBuilder text = new StringBuilder("bin/kvmerge ").append(name);
        options.forEach((option, value) -> text.append(' ')
                .append(quoted(option))
                .append(value.isEmpty() ? "" : " ")
                .append(quoted(value)));
        return text.toString();
    }

    /** As a shell takes it for one word. */
    private static String quoted(String value) {
        return value.isEmpty() || PLAIN.matcher(value).matches() ? value : "'" + value.replace("'", "'\\''") + "'";
    }

    /** What an older file does not say, but its runs tell. */
    private void guess(Report report) {
        Report.Settings settings = report.settings();
        // Quantised V cells of a run's own turn it on for that run: "-fa off" would refuse them.
        if (!settings.flashAttention().equals("off") || names(report).noneMatch(CommandLine::needsFlashAttention)) {
            add("-fa", settings.flashAttention());
        }
        if (report.runs().stream().anyMatch(run -> "stop".equals(run.observation()))) {
            add("--observe", "stop");
        }
        if (report.runs().stream()
                .anyMatch(run -> "capture".equals(run.observation()) && "off".equals(run.flashAttention()))) {
            add("--observe", "capture");
        }
        report.runs().stream()
                .map(RunResult::observedQueries)
                .filter(Objects::nonNull)
                .findFirst()
                .ifPresent(queries -> add("--observe-queries", queries));
        if (report.runs().stream().noneMatch(CommandLine::hasChosenTypes)) {
            add("-ctk", settings.keyType());
            add("-ctv", settings.valueType());
        }
        String names = list(names(report));
        if (!names.isEmpty()) {
            add("--strategies", names);
        }
        String mib = list(report.runs().stream().map(RunResult::kvMib).filter(Objects::nonNull));
        String compressions =
                list(report.runs().stream().map(RunResult::compression).filter(share -> share > 0));
        if (!mib.isEmpty()) {
            add("--kv-mib", mib);
        } else if (!compressions.isEmpty()) {
            add("--compression", compressions);
        }
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
