package dev.kvmerge.report;

import dev.kvmerge.eval.Ruler;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * ruler.json: what was asked, on what, and every text that was read into a cache.
 *
 * @param text the prose between which things are hidden
 * @param settings shared by all readings
 * @param options as {@link Report#options}; null also where several calls had different ones
 * @param readings finished ones
 */
public record RulerReport(
        Report.Versions versions,
        Report.Machine machine,
        Report.ModelInfo model,
        Report.TextInfo text,
        Settings settings,
        Map<String, String> options,
        List<Ruler.Reading> readings) {
    /**
     * What all readings shared.
     *
     * @param tasks by RULER's names
     * @param known whether the questions stand before the texts, too
     * @param block tokens between two compressions; 0 where a text is compressed once, as a whole
     * @param seed of the texts
     */
    public record Settings(
            List<String> tasks,
            boolean known,
            int block,
            long seed,
            int threads,
            String flashAttention,
            String keyType,
            String valueType,
            Integer observedQueries) {}

    /** The same, going on with what a call before has read. */
    public RulerReport after(RulerReport before) {
        boolean same = before.readings.isEmpty() || Objects.equals(before.options, options);
        return new RulerReport(versions, machine, model, text, settings, same ? options : null, before.readings);
    }

    /** The same with these readings. */
    public RulerReport with(List<Ruler.Reading> newReadings) {
        return new RulerReport(versions, machine, model, text, settings, options, List.copyOf(newReadings));
    }

    /** Whether readings of the other can stand beside readings of this. */
    public boolean comparable(RulerReport other) {
        return model.sha256().equals(other.model.sha256())
                && text.sha256().equals(other.text.sha256())
                && settings.equals(other.settings)
                && versions.equals(other.versions);
    }
}
