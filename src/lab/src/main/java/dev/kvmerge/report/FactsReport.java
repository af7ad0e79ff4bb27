package dev.kvmerge.report;

import dev.kvmerge.eval.Facts;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * facts.json: what was told and asked, on what, and every finished run.
 *
 * @param settings shared by all runs
 * @param options as {@link Report#options}; null also where several calls had different ones
 * @param runs finished ones
 */
public record FactsReport(
        Report.Versions versions,
        Report.Machine machine,
        Report.ModelInfo model,
        Settings settings,
        Map<String, String> options,
        List<Facts.Run> runs) {
    /**
     * What all runs shared.
     *
     * @param facts that were told
     * @param tokens of the conversation, about
     * @param answer most tokens of an answer
     * @param seed of names and values
     */
    public record Settings(
            int facts,
            int tokens,
            int answer,
            int block,
            long seed,
            int threads,
            String flashAttention,
            String keyType,
            String valueType,
            Integer observedQueries) {}

    /** The same, going on with what a call before has asked. */
    public FactsReport after(FactsReport before) {
        boolean same = before.runs.isEmpty() || Objects.equals(before.options, options);
        return new FactsReport(versions, machine, model, settings, same ? options : null, before.runs);
    }

    /** The same with these runs. */
    public FactsReport with(List<Facts.Run> newRuns) {
        return new FactsReport(versions, machine, model, settings, options, List.copyOf(newRuns));
    }

    /** Whether runs of the other can stand beside runs of this. */
    public boolean comparable(FactsReport other) {
        return model.sha256().equals(other.model.sha256())
                && settings.equals(other.settings)
                && versions.equals(other.versions);
    }
}
