package dev.kvmerge.report;

import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.strategy.Oracle;
import dev.kvmerge.strategy.OracleMerged;
import dev.kvmerge.strategy.QuantisedCells;
import dev.kvmerge.strategy.QuantisedWeights;
import dev.kvmerge.strategy.Strategies;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.BiFunction;
import java.util.function.Function;
import java.util.stream.Collectors;

/** Results in words and columns, for a terminal. */
public final class Table {
    private static final double MIB = 1024.0 * 1024.0;

    private static final Set<String> SCALES =
            Set.of(Oracle.NAME, OracleMerged.NAME, QuantisedCells.NAME, QuantisedWeights.NAME);

    private Table() {}

    /**
     * The same results, where those of caches of one name that had several settings are each named with its own.
     *
     * @param cache the name
     * @param parameters the settings, as text
     * @param named makes the same result with another name
     */
    static <T> List<T> toldApart(
            List<T> results,
            Function<T, String> cache,
            Function<T, String> parameters,
            BiFunction<T, String, T> named) {
        Map<String, Set<String>> settings = results.stream()
                .collect(Collectors.groupingBy(cache, Collectors.mapping(parameters, Collectors.toSet())));
        return results.stream()
                .map(r -> settings.get(cache.apply(r)).size() == 1
                        ? r
                        : named.apply(r, cache.apply(r) + " " + parameters.apply(r)))
                .toList();
    }

    /** The table, each compression a part, then a sentence for each run. */
    public static String of(List<RunResult> runs) {
        RunResult full = runs.stream()
                .filter(r -> r.strategy().equals(Strategies.FULL))
                .findFirst()
                .orElse(null);
        StringBuilder text = new StringBuilder();
        List<String[]> rows = new ArrayList<>();
        rows.add(new String[] {
            "strategy",
            "cells",
            "PPL",
            "+/-",
            "KL",
            "+/-",
            "KL p99",
            "same top",
            "fa",
            "allocated",
            "KV MiB",
            "own MiB",
            "tokens/s",
            "speed"
        });
        runs.stream().filter(r -> r.compression() == 0).forEach(r -> rows.add(row(r, full)));
        byCompression(runs).forEach((compression, part) -> {
            rows.add(new String[] {String.format(Locale.ROOT, "%s %% fewer cells", percent(compression)) + scored(part)
            });
            part.forEach(r -> rows.add(row(r, full)));
        });
        text.append(align(rows));
        text.append("\nfa: llama.cpp's flash attention, without which it takes no quantised V cells\n");
        text.append("allocated, KV: what llama.cpp allocates, the cells and a block, rounded up to 256;")
                .append(" own: all that kvmerge keeps beside\n");
        text.append("speed: tokens/s against the full cache read the same way, with logits for every token;")
                .append(" 'kvmerge bench' compares with llama.cpp at its fastest\n");
        runs.stream().filter(r -> r.strategy().equals(Experiment.AGAIN)).forEach(again -> text.append(floor(again)));
        text.append('\n');
        for (RunResult run : runs) {
            if (run.compression() > 0) {
                text.append(sentence(run, full)).append('\n');
            }
        }
        return text.toString();
    }

    /** What a KL is worth: less than this is no compression's doing. */
    public static String floor(RunResult again) {
        return again.klMean() == null
                ? ""
                : String.format(
                        Locale.ROOT,
                        "noise floor: KL %.2e +/- %.1e, the full cache against itself, watched as others are%n",
                        again.klMean(),
                        again.klSe());
    }

    private static String scored(List<RunResult> part) {
        RunResult any = part.getFirst();
        return String.format(
                Locale.ROOT,
                " (%,d tokens scored, full cache PPL %s)",
                any.scored(),
                number("%.3f", any.perplexityFull()));
    }

    /**
     * One run in a sentence: "entropy-merged, 70 % fewer cells: +1.6 % perplexity, KL .019, 3.1 MiB instead of 9.4, 1.2
     * x the speed".
     */
    public static String sentence(RunResult run, RunResult full) {
        List<String> facts = new ArrayList<>();
        if (run.perplexity() != null && run.perplexityFull() != null) {
            facts.add(String.format(
                    Locale.ROOT, "%+.1f %% perplexity", 100 * (run.perplexity() / run.perplexityFull() - 1)));
        }
        if (run.klMean() != null) {
            facts.add("KL "
                    + String.format(Locale.ROOT, run.klMean() < 0.001 ? "%.5f" : "%.4f", run.klMean())
                            .replaceFirst("^0", ""));
        }
        if (run.kvBytes() != null && run.kvBytesFull() != null) {
            String own = run.tableBytes() == null
                    ? ""
                    : String.format(Locale.ROOT, " and %.1f of tables", run.tableBytes() / MIB);
            facts.add(String.format(
                    Locale.ROOT, "%.1f MiB%s instead of %.1f", run.kvBytes() / MIB, own, run.kvBytesFull() / MIB));
        }
        if (full != null && full.tokensPerSecond() != null && run.tokensPerSecond() != null) {
            facts.add(String.format(Locale.ROOT, "%.2f x the speed", run.tokensPerSecond() / full.tokensPerSecond()));
        }
        return run.strategy() + ", " + percent(run.compression()) + " % fewer cells: " + String.join(", ", facts);
    }

    /**
     * The method with the least divergence of each compression against each of the others, on the same tokens: a
     * difference of less than twice its standard error is called a tie.
     *
     * @param traces by run id
     */
    public static String comparisons(List<RunResult> runs, Map<String, Trace> traces) {
        StringBuilder text = new StringBuilder();
        byCompression(runs).forEach((compression, all) -> {
            List<RunResult> part = all.stream()
                    .filter(r -> !SCALES.contains(r.strategy().split("[:@]", 2)[0]))
                    .toList();
            if (part.isEmpty()) {
                return;
            }
            RunResult best = part.getFirst();
            for (RunResult other : part.subList(1, part.size())) {
                Trace a = traces.get(best.id());
                Trace b = traces.get(other.id());
                Trace.Difference d = a == null || b == null ? null : a.minus(b, best.cells() + 1);
                if (d != null) {
                    text.append(String.format(
                            Locale.ROOT,
                            "%s against %s, %s %% fewer cells: KL %s +/- %.4f%s, perplexity %s %% +/- %.2f%s%n",
                            best.strategy(),
                            other.strategy(),
                            percent(compression),
                            number("%+.4f", d.kl()),
                            d.klError(),
                            tie(d.kl(), d.klError()),
                            number("%+.2f", 100 * Math.expm1(d.nll())),
                            100 * d.nllError(),
                            tie(d.nll(), d.nllError())));
                }
            }
        });
        return text.toString();
    }

    /**
     * With cells of another type than F16: what the type and the strategy save together, against a full cache of F16
     * cells.
     */
    public static String savedWithQuantisation(List<RunResult> runs, CellType key, CellType value) {
        if (key == CellType.F16 && value == CellType.F16) {
            return "";
        }
        StringBuilder text = new StringBuilder();
        for (RunResult run : runs) {
            if (run.kvBytes() != null && run.kvBytesFull() != null) {
                double half = run.kvBytesFull()
                        * 2
                        / (key.bytes() + value.bytes())
                        * 2; // a full cache at two bytes an element
                text.append(String.format(
                        Locale.ROOT,
                        "%s: %.1f MiB, %.1f %% less than the full cache in F16 (%.1f MiB)%n",
                        run.id(),
                        run.kvBytes() / MIB,
                        100 * (1 - run.kvBytes() / half),
                        half / MIB));
            }
        }
        return text.toString();
    }

    private static String tie(double difference, double error) {
        return Math.abs(difference) < 2 * error ? " (a tie)" : "";
    }

    /** The compressed runs by compression, in each the least divergence first. */
    private static Map<Double, List<RunResult>> byCompression(List<RunResult> runs) {
        Map<Double, List<RunResult>> parts = new TreeMap<>();
        runs.stream()
                .filter(r -> r.compression() > 0)
                .sorted(Comparator.comparing(r -> r.klMean() == null ? Double.MAX_VALUE : r.klMean()))
                .forEach(r -> parts.computeIfAbsent(r.compression(), c -> new ArrayList<>())
                        .add(r));
        return parts;
    }

    static String percent(double share) {
        return java.math.BigDecimal.valueOf(share * 100)
                .setScale(2, java.math.RoundingMode.HALF_UP)
                .stripTrailingZeros()
                .toPlainString();
    }

    private static String[] row(RunResult run, RunResult full) {
        Double speed = full == null || full.tokensPerSecond() == null || run.tokensPerSecond() == null
                ? null
                : run.tokensPerSecond() / full.tokensPerSecond();
        return new String[] {
            run.compression() > 0 ? "  " + run.strategy() : run.strategy(),
            String.format(Locale.ROOT, "%,d", run.cells()),
            number("%.3f", run.perplexity()),
            number("%.3f", run.perplexitySe()),
            number("%.4f", run.klMean()),
            number("%.4f", run.klSe()),
            number("%.3f", run.klP99()),
            run.top1Agreement() == null ? "-" : String.format(Locale.ROOT, "%.1f %%", 100 * run.top1Agreement()),
            run.flashAttention() == null ? "-" : run.flashAttention(),
            run.cellsAllocated() == null ? "-" : String.format(Locale.ROOT, "%,d", run.cellsAllocated()),
            run.kvBytes() == null ? "-" : String.format(Locale.ROOT, "%.1f", run.kvBytes() / MIB),
            run.tableBytes() == null ? "-" : String.format(Locale.ROOT, "%.1f", run.tableBytes() / MIB),
            number("%.0f", run.tokensPerSecond()),
            speed == null ? "-" : String.format(Locale.ROOT, "%.2f x", speed)
        };
    }

    static String number(String format, Double x) {
        return x == null ? "-" : unsignedZero(String.format(Locale.ROOT, format, x));
    }

    /** A number that was rounded to zero, from below or above, has no sign. */
    private static String unsignedZero(String number) {
        return number.replaceFirst("^[-+](0(\\.0*)?)$", "$1");
    }

    static String align(List<String[]> rows) {
        int[] width = new int[rows.getFirst().length];
        for (String[] row : rows) {
            for (int i = 0; row.length > 1 && i < row.length; i++) {
                width[i] = Math.max(width[i], row[i].length());
            }
        }
        StringBuilder text = new StringBuilder();
        for (String[] row : rows) {
            StringBuilder line = new StringBuilder();
            for (int i = 0; i < row.length; i++) {
                String pad = " ".repeat(Math.max(0, width[i] - row[i].length()));
                line.append(i == 0 ? row[i] + (row.length > 1 ? pad : "") : "  " + pad + row[i]);
            }
            text.append(line).append('\n');
            if (row == rows.getFirst()) {
                text.append("-".repeat(line.length())).append('\n');
            }
        }
        return text.toString();
    }
}
