package dev.kvmerge.report;

import dev.kvmerge.eval.RunResult;
import java.lang.reflect.RecordComponent;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;

/**
 * results.json: what was run, on what, and every finished run.
 *
 * @param versions of the software
 * @param machine that it ran on
 * @param model that was run
 * @param text that was read
 * @param settings shared by all runs
 * @param options that the command was given beside model and text, by name; "" of one without a value; null in older
 *     files
 * @param runs finished ones, the full cache first
 */
public record Report(
        Versions versions,
        Machine machine,
        ModelInfo model,
        TextInfo text,
        Settings settings,
        Map<String, String> options,
        List<RunResult> runs) {
    /** Versions of the software. */
    public record Versions(String kvmerge, String llamaCpp, String jdk) {}

    /**
     * The machine.
     *
     * @param cpu as the system names it
     * @param cores that the JVM sees
     * @param instructionSet of kvmerge's kernels
     * @param device that layers and cells were on
     * @param gpu as llama.cpp names it; null without one
     */
    public record Machine(String cpu, int cores, String instructionSet, String device, String gpu) {}

    /** The model. */
    public record ModelInfo(
            String path,
            String sha256,
            String architecture,
            String description,
            int layers,
            int heads,
            int kvHeads,
            Integer headDim,
            String type) {}

    /**
     * The text.
     *
     * @param offset first token of the text that was used
     */
    public record TextInfo(String name, String sha256, int offset) {}

    /**
     * What all runs shared. Those with cells of their own have what they say themselves.
     *
     * @param observedQueries of a block's captured queries; null where none are captured, and in older files
     */
    public record Settings(
            int tokens,
            String mode,
            int block,
            int threads,
            String flashAttention,
            String keyType,
            String valueType,
            Integer observedQueries) {}

    /** Flash attention, as llama.cpp ran it: "on", "off", or both and of which. */
    public String flashAttention() {
        List<String> with = runs.stream()
                .filter(run -> "on".equals(run.flashAttention()))
                .map(RunResult::id)
                .toList();
        List<String> without = runs.stream()
                .filter(run -> "off".equals(run.flashAttention()))
                .map(RunResult::id)
                .toList();
        if (with.isEmpty() && without.isEmpty()) {
            return settings.flashAttention(); // older files
        }
        return without.isEmpty() ? "on" : with.isEmpty() ? "off" : "off, but on for " + String.join(", ", with);
    }

    /** The same of an experiment with other settings and options. */
    public Report with(Settings newSettings, Map<String, String> newOptions) {
        return new Report(versions, machine, model, text, newSettings, newOptions, runs);
    }

    /** The same with these runs. */
    public Report with(List<RunResult> newRuns) {
        return new Report(versions, machine, model, text, settings, options, List.copyOf(newRuns));
    }

    /**
     * Why runs of the other cannot stand beside runs of this: what differs of model, text, settings and versions, with
     * both values.
     */
    public List<String> differences(Report other) {
        List<String> all = new ArrayList<>();
        if (!model.sha256().equals(other.model.sha256())) {
            all.add("model " + model.path() + " is now " + other.model.path()
                    + (model.path().equals(other.model.path()) ? " with other content" : ""));
        }
        difference("text ", text, other.text, all);
        difference("", settings, other.settings, all);
        difference("version of ", versions, other.versions, all);
        return all;
    }

    private static void difference(String what, Record before, Record now, List<String> all) {
        for (RecordComponent component : before.getClass().getRecordComponents()) {
            try {
                Object old = component.getAccessor().invoke(before);
                Object fresh = component.getAccessor().invoke(now);
                if (!Objects.equals(old, fresh)) {
                    all.add(what
                            + component.getName().replaceAll("([A-Z])", " $1").toLowerCase(Locale.ROOT) + " " + old
                            + " is now " + fresh);
                }
            } catch (ReflectiveOperationException e) {
                throw new IllegalStateException(e);
            }
        }
    }
}
