package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A table of measured figures as docs/results keeps it: a CSV file whose first lines, "# key: value", say how it was
 * made. Cells are kept as they were printed, so that a page shows what was measured and no digit more.
 *
 * @param about how it was made: title, date, machine, versions, and a command or, where one command does not do, how
 * @param columns their names
 * @param rows as many cells each as there are columns
 */
record Figures(Map<String, String> about, List<String> columns, List<List<String>> rows) {
    private static final String ERROR = " +/-";
    private static final Pattern ABOUT = Pattern.compile("# (\\w+): (.*)");
    private static final Pattern CELL = Pattern.compile("(?:^|,)(?:\"((?:[^\"]|\"\")*)\"|([^,]*))");
    private static final Pattern PART = Pattern.compile("(\\S+ %) fewer cells .*");
    private static final Pattern PAIR =
            Pattern.compile("(\\S+) against (\\S+), (\\S+ %) fewer cells: KL (\\S+) \\+/- (\\S+?)( \\(a tie\\))?,"
                    + " perplexity (\\S+ %) \\+/- (\\S+)( \\(a tie\\))?");

    /**
     * Reads a file of docs/results.
     *
     * @throws KvmergeException if it cannot be read or a row has more or fewer cells than there are columns
     */
    static Figures read(Path file) {
        Map<String, String> about = new LinkedHashMap<>();
        List<List<String>> lines = new ArrayList<>();
        try {
            for (String line : Files.readAllLines(file)) {
                Matcher key = ABOUT.matcher(line);
                if (key.matches()) {
                    about.put(key.group(1), key.group(2));
                } else if (!line.isBlank()) {
                    lines.add(cells(line));
                }
                if (lines.size() > 1
                        && lines.getLast().size() != lines.getFirst().size()) {
                    throw new KvmergeException(file + " has " + lines.getLast().size() + " cells where it has "
                            + lines.getFirst().size() + " columns: " + line);
                }
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + file + ": " + e, e);
        }
        if (lines.isEmpty()) {
            throw new KvmergeException(file + " has no header: its first line without # must name the columns");
        }
        return new Figures(about, lines.getFirst(), List.copyOf(lines.subList(1, lines.size())));
    }

    private static List<String> cells(String line) {
        List<String> cells = new ArrayList<>();
        Matcher cell = CELL.matcher(line);
        while (cell.find()) {
            cells.add(cell.group(1) == null ? cell.group(2) : cell.group(1).replace("\"\"", "\""));
        }
        return cells;
    }

    /** The file's text. */
    String csv() {
        StringBuilder text = new StringBuilder();
        about.forEach((key, value) ->
                text.append("# ").append(key).append(": ").append(value).append('\n'));
        text.append(csv(columns));
        rows.forEach(row -> text.append(csv(row)));
        return text.toString();
    }

    private static String csv(List<String> cells) {
        return String.join(
                        ",",
                        cells.stream()
                                .map(c -> c.matches(".*[\",].*") ? '"' + c.replace("\"", "\"\"") + '"' : c)
                                .toList())
                + "\n";
    }

    /**
     * What a command printed: the first table in it, aligned or Markdown, and the comparisons of pairs if there are
     * any.
     *
     * @return by what is added to the table's name: "" and "-pairs"
     * @throws KvmergeException if there is no table
     */
    static Map<String, Figures> printed(String text) {
        Map<String, Figures> tables = new LinkedHashMap<>();
        List<String> lines = text.lines().toList();
        Figures table = lines.stream().anyMatch(l -> l.startsWith("|")) ? markdown(lines) : aligned(lines);
        if (table == null) {
            throw new KvmergeException("no table in what was printed");
        }
        tables.put("", table);
        List<List<String>> pairs = new ArrayList<>();
        for (String line : lines) {
            Matcher pair = PAIR.matcher(line);
            if (pair.matches()) {
                pairs.add(List.of(
                        pair.group(3),
                        pair.group(2),
                        pair.group(4),
                        pair.group(5),
                        pair.group(6) == null ? "" : "a tie",
                        pair.group(7),
                        pair.group(8),
                        pair.group(9) == null ? "" : "a tie"));
            }
        }
        if (!pairs.isEmpty()) {
            tables.put(
                    "-pairs",
                    new Figures(
                            Map.of(),
                            List.of("fewer cells", "against", "KL", "+/-", "", "perplexity", "+/-", ""),
                            pairs));
        }
        return tables;
    }

    private static Figures markdown(List<String> lines) {
        List<List<String>> rows = lines.stream()
                .dropWhile(l -> !l.startsWith("|"))
                .takeWhile(l -> l.startsWith("|"))
                .filter(l -> !l.matches("[|: -]+"))
                .map(l -> List.of(l.substring(1, l.lastIndexOf('|')).split("\\|", -1)).stream()
                        .map(String::strip)
                        .toList())
                .toList();
        return new Figures(Map.of(), rows.getFirst(), rows.subList(1, rows.size()));
    }

    /** A header, a rule of dashes, rows; a line of one cell that names a compression is a column in front here. */
    private static Figures aligned(List<String> lines) {
        int rule = 1;
        while (rule < lines.size() && !lines.get(rule).matches("---+")) {
            rule++;
        }
        if (rule >= lines.size()) {
            return null;
        }
        List<String> columns = List.of(lines.get(rule - 1).strip().split(" {2,}"));
        boolean parts = lines.stream().anyMatch(l -> PART.matcher(l).matches());
        List<List<String>> rows = new ArrayList<>();
        String part = "0 %";
        for (String line : lines.subList(rule + 1, lines.size())) {
            Matcher named = PART.matcher(line);
            List<String> cells = List.of(line.strip().split(" {2,}"));
            if (named.matches()) {
                part = named.group(1);
            } else if (cells.size() == columns.size()) {
                rows.add(parts ? before(part, cells) : cells);
            } else {
                break;
            }
        }
        return new Figures(Map.of(), parts ? before("fewer cells", columns) : columns, rows);
    }

    private static List<String> before(String first, List<String> rest) {
        List<String> all = new ArrayList<>(List.of(first));
        all.addAll(rest);
        return all;
    }

    /** The same figures with what is said about them, and without the columns that `without` names. */
    Figures about(Map<String, String> words) {
        List<String> leave = List.of(words.getOrDefault("without", "").split(", *"));
        List<Integer> stay = java.util.stream.IntStream.range(0, columns.size())
                .filter(i -> !leave.contains(columns.get(i)))
                .boxed()
                .toList();
        return new Figures(
                words,
                stay.stream().map(columns::get).toList(),
                rows.stream().map(r -> stay.stream().map(r::get).toList()).toList());
    }

    /** The rows that begin with these cells, without those cells and their columns. */
    Figures part(List<String> key) {
        return new Figures(
                about,
                columns.subList(key.size(), columns.size()),
                rows.stream()
                        .filter(r -> r.subList(0, key.size()).equals(key))
                        .map(r -> r.subList(key.size(), r.size()))
                        .toList());
    }

    /**
     * One figure.
     *
     * @param key the first cells of its row
     * @param column its name, or "NAME +/-" for the error that stands behind a column
     * @throws KvmergeException if there is no such row or column
     */
    String figure(List<String> key, String column) {
        boolean error = column.endsWith(ERROR);
        int named = columns.indexOf(error ? column.substring(0, column.length() - ERROR.length()) : column);
        int at = error && named >= 0 ? named + 1 : named;
        return rows.stream()
                .filter(r ->
                        at >= 0 && r.subList(0, Math.min(key.size(), r.size())).equals(key))
                .findFirst()
                .map(r -> r.get(at))
                .orElseThrow(
                        () -> new KvmergeException("no figure " + key + " " + column + " in: " + about.get("title")));
    }

    /** A Markdown table; columns of numbers stand on the right. */
    String markdown() {
        StringBuilder text = new StringBuilder();
        text.append(line(columns));
        for (int c = 0; c < columns.size(); c++) {
            int column = c;
            text.append(
                    rows.stream().allMatch(r -> r.get(column).matches("([-+.]?\\d.*|-|a tie)?")) ? "| --: " : "| :-- ");
        }
        text.append("|\n");
        rows.forEach(r -> text.append(line(r)));
        return text.toString();
    }

    private static String line(List<String> cells) {
        return "| " + String.join(" | ", cells) + " |\n";
    }

    /** A figure as a number: thousands' commas and what follows the digits left out. */
    static double number(String figure) {
        Matcher digits = Pattern.compile("[-+]?[\\d,]*\\.?\\d+").matcher(figure);
        if (!digits.find()) {
            throw new KvmergeException("'" + figure + "' is no number");
        }
        return Double.parseDouble(digits.group().replace(",", ""));
    }

    /** How many times the other a figure is, to two digits. */
    static String ratio(String figure, String other) {
        return String.format(Locale.ROOT, "%.2f", number(figure) / number(other));
    }
}
