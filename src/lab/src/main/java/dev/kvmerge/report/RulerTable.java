package dev.kvmerge.report;

import dev.kvmerge.eval.Ruler.Answer;
import dev.kvmerge.eval.Ruler.Item;
import dev.kvmerge.eval.Ruler.Reading;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;

/** Accuracy in RULER's tasks by cache. */
public final class RulerTable {
    private RulerTable() {}

    /** A mean over texts, and its standard error; NaN of one text. */
    record Mean(double mean, double error) {
        static Mean of(double[] x) {
            double mean = java.util.Arrays.stream(x).average().orElse(Double.NaN);
            double squares =
                    java.util.Arrays.stream(x).map(v -> (v - mean) * (v - mean)).sum();
            return new Mean(mean, x.length < 2 ? Double.NaN : Math.sqrt(squares / (x.length - 1) / x.length));
        }
    }

    /** A row of the table: all readings of a length into a cache. */
    private record Key(int tokens, double compression, String cache) {}

    /** The table: of each length the full cache first, then each compression, in it the best first. */
    public static String of(List<Reading> readings, List<String> tasks) {
        return Table.align(rows(readings, tasks));
    }

    /** The same in cells, the first row the columns' names. */
    static List<String[]> rows(List<Reading> readings, List<String> tasks) {
        Map<Key, List<Reading>> parts = readings.stream()
                .collect(Collectors.groupingBy(
                        r -> new Key(r.item().tokens(), r.compression(), r.cache()),
                        LinkedHashMap::new,
                        Collectors.toList()));
        List<Key> keys = new ArrayList<>(parts.keySet());
        keys.sort(Comparator.comparingInt(Key::tokens)
                .thenComparingDouble(Key::compression)
                .thenComparing(k -> -all(parts.get(k), tasks).mean()));
        List<String[]> rows = new ArrayList<>();
        List<String> head = new ArrayList<>(List.of("tokens", "fewer cells", "cache", "all", "+/-", "lost", "+/-"));
        head.addAll(tasks);
        rows.add(head.toArray(String[]::new));
        for (Key key : keys) {
            List<Reading> part = parts.get(key);
            List<Reading> full = readings.stream()
                    .filter(r -> r.compression() == 0 && r.item().tokens() == key.tokens)
                    .toList();
            Mean all = all(part, tasks);
            Mean lost = key.compression == 0 ? new Mean(Double.NaN, Double.NaN) : lost(part, full, tasks);
            List<String> row = new ArrayList<>(List.of(
                    String.format(Locale.ROOT, "%,d", key.tokens),
                    Table.percent(key.compression) + " %",
                    key.cache,
                    percent(all.mean),
                    percent(all.error),
                    percent(lost.mean),
                    percent(lost.error)));
            for (String task : tasks) {
                Mean mean = Mean.of(part.stream()
                        .filter(r -> has(r, task))
                        .mapToDouble(r -> score(r, task))
                        .toArray());
                row.add(percent(mean.mean) + " ± " + percent(mean.error));
            }
            rows.add(row.toArray(String[]::new));
        }
        return rows;
    }

    /** Whether every cache was asked all tasks in all texts of its length: else means are of different ones. */
    static boolean isWhole(List<Reading> readings, List<String> tasks) {
        return readings.stream().collect(Collectors.groupingBy(r -> r.item().tokens())).values().stream()
                .allMatch(ofLength -> isWholeOfLength(ofLength, tasks));
    }

    private static boolean isWholeOfLength(List<Reading> readings, List<String> tasks) {
        record Cache(String name, String parameters, double compression) {}
        record Asked(Cache cache, Item item) {}
        Set<Asked> asked = readings.stream()
                .map(r -> new Asked(new Cache(r.cache(), r.parameters(), r.compression()), r.item()))
                .collect(Collectors.toSet());
        long caches = asked.stream().map(Asked::cache).distinct().count();
        long items = asked.stream().map(Asked::item).distinct().count();
        return asked.size() == caches * items
                && tasks.stream().allMatch(task -> readings.stream().anyMatch(r -> has(r, task)));
    }

    /** The same, where caches of one name had several settings each named with its own. */
    static List<Reading> toldApart(List<Reading> readings) {
        return Table.toldApart(
                readings,
                Reading::cache,
                Reading::parameters,
                (r, name) -> new Reading(
                        r.item(),
                        name,
                        r.parameters(),
                        r.compression(),
                        r.read(),
                        r.cells(),
                        r.seconds(),
                        r.answers()));
    }

    private static String percent(double share) {
        return Double.isNaN(share) ? "-" : Table.number("%.1f", 100 * share);
    }

    private static boolean has(Reading reading, String task) {
        return reading.answers().stream().anyMatch(a -> a.task().equals(task));
    }

    /** Of a text's questions of a task. */
    private static double score(Reading reading, String task) {
        return reading.answers().stream()
                .filter(a -> a.task().equals(task))
                .mapToDouble(Answer::score)
                .average()
                .orElse(Double.NaN);
    }

    /** The sum over a text's tasks: those of one text are not independent, and no text has tasks of two kinds. */
    private static double sum(Reading reading, List<String> tasks) {
        return tasks.stream()
                .filter(task -> has(reading, task))
                .mapToDouble(task -> score(reading, task))
                .sum();
    }

    /** The mean of all tasks, each counted alike. */
    static Mean all(List<Reading> readings, List<String> tasks) {
        return all(
                readings.stream()
                        .collect(Collectors.groupingBy(
                                r -> r.item().kind(),
                                TreeMap::new,
                                Collectors.mapping(r -> sum(r, tasks), Collectors.toList()))),
                tasks.stream()
                        .filter(task -> readings.stream().anyMatch(r -> has(r, task)))
                        .count());
    }

    /** How much less than the full cache, over the texts that both have read. */
    static Mean lost(List<Reading> readings, List<Reading> full, List<String> tasks) {
        Map<Item, Reading> other = full.stream().collect(Collectors.toMap(Reading::item, r -> r, (a, b) -> a));
        List<Reading> both =
                readings.stream().filter(r -> other.containsKey(r.item())).toList();
        return all(
                both.stream()
                        .collect(Collectors.groupingBy(
                                r -> r.item().kind(),
                                TreeMap::new,
                                Collectors.mapping(
                                        r -> sum(other.get(r.item()), tasks) - sum(r, tasks), Collectors.toList()))),
                tasks.stream()
                        .filter(task -> both.stream().anyMatch(r -> has(r, task)))
                        .count());
    }

    /** Means of kinds of texts are independent: their errors' squares add up. */
    private static Mean all(Map<String, List<Double>> sums, long tasks) {
        double mean = 0;
        double squares = 0;
        for (List<Double> kind : sums.values()) {
            Mean of = Mean.of(kind.stream().mapToDouble(x -> x / tasks).toArray());
            mean += of.mean;
            squares += of.error * of.error;
        }
        return sums.isEmpty() ? new Mean(Double.NaN, Double.NaN) : new Mean(mean, Math.sqrt(squares));
    }

    /** One row an answer. */
    public static String csv(List<Reading> readings) {
        StringBuilder text = new StringBuilder(
                "tokens,compression,cache,cells,text,task,question,expected,said,found,of,seconds,parameters\n");
        for (Reading r : readings) {
            for (Answer a : r.answers()) {
                text.append(List.of(
                                        r.item().tokens(),
                                        r.compression(),
                                        r.cache(),
                                        r.cells(),
                                        r.item().kind() + " " + r.item().index(),
                                        a.task(),
                                        a.question(),
                                        String.join(" ", a.expected()),
                                        a.said(),
                                        a.found(),
                                        a.expected().size(),
                                        String.format(Locale.ROOT, "%.1f", r.seconds()),
                                        r.parameters())
                                .stream()
                                .map(ResultsFolder::quoted)
                                .collect(Collectors.joining(",")))
                        .append('\n');
            }
        }
        return text.toString();
    }

    /** What the columns mean. */
    public static String legend() {
        return "Percent of the expected answers that an answer contains. all: the mean of the tasks; lost: the full"
                + " cache's, less this, on the\nsame texts. +/- and ±: standard error over texts, which are drawn"
                + " anew each; texts that all came out alike show 0.\n";
    }
}
