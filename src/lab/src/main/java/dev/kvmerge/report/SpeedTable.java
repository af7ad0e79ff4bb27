package dev.kvmerge.report;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvmerge.eval.SpeedBench.Row;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;

/** Speeds in llama-bench's form: one row a test and cache, as Markdown, CSV or JSON; ratios first. */
public final class SpeedTable {
    private static final double MIB = 1024.0 * 1024.0;

    /** What all rows share: llama-bench's own columns. */
    public record Machine(String model, long bytes, long parameters, String backend, int threads) {}

    private SpeedTable() {}

    /**
     * Formats the rows.
     *
     * @param form "md", "csv" or "json"
     */
    public static String of(List<Row> rows, Machine machine, String form) {
        return switch (form) {
            case "csv" -> csv(rows, machine);
            case "json" -> json(rows, machine);
            default -> markdown(rows, machine);
        };
    }

    private static String markdown(List<Row> rows, Machine m) {
        List<String[]> cells = new ArrayList<>();
        cells.add(new String[] {
            "model",
            "size",
            "params",
            "backend",
            "threads",
            "cache",
            "cells",
            "fa",
            "test",
            "speed",
            "min..max",
            "overhead",
            "t/s"
        });
        for (Row r : rows) {
            cells.add(new String[] {
                m.model(),
                String.format(Locale.ROOT, "%.2f MiB", m.bytes() / MIB),
                String.format(Locale.ROOT, "%.2f M", m.parameters() / 1e6),
                m.backend(),
                Integer.toString(m.threads()),
                name(r),
                Integer.toString(r.cells()),
                setting(r),
                r.test(),
                String.format(Locale.ROOT, "%.2f x", r.speed()),
                String.format(Locale.ROOT, "%.2f..%.2f", r.slowest(), r.fastest()),
                r.overhead() == null ? "" : String.format(Locale.ROOT, "%.1f %%", 100 * r.overhead()),
                String.format(Locale.ROOT, "%.2f", r.tokensPerSecond())
            });
        }
        int[] widths = new int[cells.getFirst().length];
        cells.forEach(row -> {
            for (int i = 0; i < row.length; i++) {
                widths[i] = Math.max(widths[i], row[i].length());
            }
        });
        StringBuilder text = new StringBuilder();
        for (int r = 0; r < cells.size(); r++) {
            for (int i = 0; i < widths.length; i++) {
                text.append(String.format("| %" + (isText(i) ? "-" : "") + widths[i] + "s ", cells.get(r)[i]));
            }
            text.append("|\n");
            for (int i = 0; i < widths.length && r == 0; i++) {
                text.append("| ").append("-".repeat(widths[i])).append(isText(i) ? " " : ":");
            }
            text.append(r == 0 ? "|\n" : "");
        }
        return text.toString();
    }

    private static boolean isText(int column) {
        return column == 0 || column == 3 || column == 5 || column == 7;
    }

    private static String name(Row r) {
        return r.overhead() == null ? r.cache() : r.cache() + " " + Math.round(100 * r.compression()) + " %";
    }

    /** "on", "off" or "auto": the fastest for this row. */
    private static String setting(Row r) {
        return r.flashAttention().name().toLowerCase(Locale.ROOT);
    }

    private static Map<String, Object> fields(Row r, Machine m) {
        Map<String, Object> f = new LinkedHashMap<>();
        f.put("model_type", m.model());
        f.put("model_size", m.bytes());
        f.put("model_n_params", m.parameters());
        f.put("backends", m.backend());
        f.put("n_threads", m.threads());
        f.put("cache", r.cache());
        f.put("compression", r.compression());
        f.put("cells", r.cells());
        f.put("flash_attn", setting(r));
        f.put("test", r.test());
        f.put("speed", r.speed());
        f.put("speed_min", r.slowest());
        f.put("speed_max", r.fastest());
        f.put("overhead", r.overhead());
        f.put("median_ts", r.tokensPerSecond());
        f.put("samples_ts", r.samples());
        return f;
    }

    private static String csv(List<Row> rows, Machine m) {
        StringBuilder text = new StringBuilder();
        for (Row r : rows) {
            Map<String, Object> f = fields(r, m);
            f.remove("samples_ts");
            if (text.isEmpty()) {
                text.append(String.join(",", f.keySet())).append('\n');
            }
            text.append(f.values().stream()
                            .map(v -> v == null ? "" : v instanceof String s ? '"' + s + '"' : v.toString())
                            .collect(Collectors.joining(",")))
                    .append('\n');
        }
        return text.toString();
    }

    private static String json(List<Row> rows, Machine m) {
        try {
            return new ObjectMapper()
                            .writerWithDefaultPrettyPrinter()
                            .writeValueAsString(
                                    rows.stream().map(r -> fields(r, m)).toList())
                    + "\n";
        } catch (JsonProcessingException e) {
            throw new IllegalStateException("cannot write the rows as JSON", e);
        }
    }
}
