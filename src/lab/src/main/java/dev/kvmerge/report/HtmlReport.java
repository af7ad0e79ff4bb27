package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.Ruler;
import dev.kvmerge.eval.RunResult;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * All results of a folder on one page: experiments' tables sorted by KL, accuracy in RULER's tasks, what caches
 * remember of a conversation; the plots inside the page, versions, and the command that makes each again. Results that
 * are broken or not whole are named with what is missing, and the others are shown.
 */
public final class HtmlReport {
    private static final String STYLE = """
            body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
            body { color: #222; background: #fff }
            h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem }
            table { border-collapse: collapse; font-size: .9rem; width: 100% }
            caption { text-align: left; font-weight: 600; padding: .5rem 0 }
            th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
            th:first-child, td:first-child { text-align: left } tr.best td { font-weight: 600 }
            pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .85rem }
            figure { margin: 1.5rem 0 } figure svg { max-width: 100%; height: auto }
            .missing { color: #a00 } .facts { color: #555; font-size: .9rem }
            """;

    private final StringBuilder html = new StringBuilder();
    private final StringBuilder markdown = new StringBuilder();
    private final List<String> problems = new ArrayList<>();
    private final Set<String> incomplete = new HashSet<>(); // folders

    private HtmlReport() {}

    /**
     * Makes the page.
     *
     * @param root what names are relative to
     * @param folders with a file each that {@link ResultsFolder#isReported} names, or several
     */
    public static HtmlReport of(Path root, List<Path> folders) {
        HtmlReport page = new HtmlReport();
        page.html
                .append("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
                        + "content=\"width=device-width\">\n")
                .append("<title>kvmerge results</title>\n<style>\n")
                .append(STYLE)
                .append("</style>\n<h1>kvmerge results</h1>\n");
        page.markdown.append("# kvmerge results\n");
        if (folders.stream().anyMatch(ResultsFolder::hasResults)) {
            page.text(METHOD + "\n");
        }
        for (Path folder : folders) {
            Path relative = root.relativize(folder);
            page.folder(
                    folder, relative.toString().isEmpty() ? folder.getFileName().toString() : relative.toString());
        }
        page.html.append("</html>\n");
        return page;
    }

    private static final String METHOD =
            "Each text is streamed through the full cache and through compressed ones, block by block; every "
                    + "prediction is compared with the"
                    + " full cache's. KL is the mean divergence KL(full || compressed) over the whole vocabulary, in "
                    + "nats, on the tokens past the"
                    + " budget; +/- is one standard error. Lower is better. Speeds are ratios of single runs: for "
                    + "speed, see 'kvmerge bench'.";

    private static final String SEVERAL =
            "Caches of one name had several settings, and are named with them. One command cannot have them all.\n";
    private static final String UNKNOWN =
            "Settings that are not in names (--sinks and the like) are not in the command: the file does not say them,"
                    + " or several calls had different ones.\n";

    /** The page. */
    public String html() {
        return html.toString();
    }

    /** The same tables. */
    public String markdown() {
        return markdown.toString();
    }

    /** What is missing, a sentence each. */
    public List<String> problems() {
        return List.copyOf(problems);
    }

    /** In how many folders something is missing. */
    public int incomplete() {
        return incomplete.size();
    }

    private void folder(Path folder, String name) {
        html.append("<h2>").append(escape(name)).append("</h2>\n");
        markdown.append("\n## ").append(plain(name)).append("\n");
        part(name, ResultsFolder.hasResults(folder), () -> experiment(folder, name));
        part(name, ResultsFolder.hasRuler(folder), () -> ruler(folder, name));
        part(name, ResultsFolder.hasFacts(folder), () -> facts(folder, name));
    }

    private void part(String name, boolean there, Runnable shown) {
        try {
            if (there) {
                shown.run();
            }
        } catch (KvmergeException e) {
            missing(name, e.getMessage());
        }
    }

    private void experiment(Path folder, String name) {
        Report report = ResultsFolder.read(folder);
        Report.Settings settings = report.settings();
        about(
                "%s, %,d tokens of %s from token %,d, block %d, %d threads, flash attention %s, cells %s/%s",
                report.versions(),
                report.machine(),
                report.model().description(),
                settings.tokens(),
                report.text().name(),
                report.text().offset(),
                settings.block(),
                settings.threads(),
                report.flashAttention(),
                settings.keyType(),
                settings.valueType());
        List<RunResult> compressed = report.runs().stream()
                .filter(r -> r.compression() > 0)
                .sorted(Comparator.comparingDouble(RunResult::compression)
                        .thenComparing(r -> r.klMean() == null ? Double.MAX_VALUE : r.klMean()))
                .toList();
        String command = CommandLine.of(report);
        if (compressed.isEmpty()) {
            missing(name, "no compressed run is finished: go on with '" + CommandLine.resuming(command, folder) + "'");
        } else {
            table(rows(compressed), 1);
        }
        report.runs().stream()
                .filter(r -> r.strategy().equals(Experiment.AGAIN))
                .map(Table::floor)
                .forEach(this::text);
        List<String> without = compressed.stream()
                .filter(r -> r.klMean() == null || r.perplexity() == null)
                .map(RunResult::id)
                .toList();
        if (!without.isEmpty()) {
            missing(name, "no KL or perplexity of " + String.join(", ", without));
        }
        command(command);
        plots(folder, name);
    }

    private void ruler(Path folder, String name) {
        RulerReport report = ResultsFolder.readRuler(folder);
        RulerReport.Settings settings = report.settings();
        about(
                "RULER's tasks: %s, prose of %s, questions %s, %s, seed %d, %d threads, flash attention %s,"
                        + " cells %s/%s",
                report.versions(),
                report.machine(),
                report.model().description(),
                report.text().name(),
                settings.known() ? "known" : "not known",
                settings.block() == Ruler.WHOLE ? "compressed once" : "block " + settings.block(),
                settings.seed(),
                settings.threads(),
                settings.flashAttention(),
                settings.keyType(),
                settings.valueType());
        List<Ruler.Reading> readings = RulerTable.toldApart(report.readings());
        if (readings.isEmpty()) {
            missing(name, "no text is read: run the same command again with --resume");
            return;
        }
        String command = CommandLine.of(report);
        table(RulerTable.rows(readings, settings.tasks()), 0, 1);
        text(RulerTable.legend());
        if (!RulerTable.isWhole(readings, settings.tasks())) {
            missing(
                    name,
                    "not every cache was asked all tasks in all texts, so means are of different ones: go on with '"
                            + CommandLine.resuming(command, folder) + "'");
        }
        command(
                command,
                !readings.equals(report.readings()),
                report.options() == null && readings.stream().anyMatch(r -> r.compression() > 0));
        AccuracyPlot.ruler(readings, settings.tasks()).forEach(this::figure);
    }

    private void facts(Path folder, String name) {
        FactsReport report = ResultsFolder.readFacts(folder);
        FactsReport.Settings settings = report.settings();
        about(
                "A conversation's facts: %s, %d facts in about %,d tokens, answers of %d at most, block %d, seed %d, "
                        + "%d threads, flash attention %s, cells %s/%s",
                report.versions(),
                report.machine(),
                report.model().description(),
                settings.facts(),
                settings.tokens(),
                settings.answer(),
                settings.block(),
                settings.seed(),
                settings.threads(),
                settings.flashAttention(),
                settings.keyType(),
                settings.valueType());
        List<Facts.Run> runs = FactsTable.toldApart(report.runs());
        if (runs.isEmpty()) {
            missing(name, "no cache is asked: run the same command again with --resume");
            return;
        }
        table(FactsTable.factsRows(runs));
        table(FactsTable.ruleRows(runs));
        text(FactsTable.legend());
        command(
                CommandLine.of(report),
                !runs.equals(report.runs()),
                report.options() == null && runs.stream().anyMatch(r -> r.cells() > 0));
        figure(AccuracyPlot.facts(runs));
    }

    private void missing(String name, String what) {
        problems.add(name + ": " + what);
        incomplete.add(name);
        html.append("<p class=\"missing\">").append(escape(what)).append("</p>\n");
        markdown.append("\nMissing: ").append(plain(what)).append("\n");
    }

    /** What was run, and by what on what. */
    private void about(String format, Report.Versions versions, Report.Machine machine, Object... settings) {
        String facts = String.format(Locale.ROOT, format, settings)
                + String.format(
                        Locale.ROOT,
                        "; kvmerge %s, llama.cpp %s, JDK %s, %s on %s.",
                        versions.kvmerge(),
                        versions.llamaCpp(),
                        versions.jdk(),
                        machine == null ? "an unknown machine" : machine.cpu(),
                        machine == null ? "an unknown device" : machine.device());
        html.append("<p class=\"facts\">").append(escape(facts)).append("</p>\n");
        markdown.append("\n").append(plain(facts)).append("\n");
    }

    private void text(String lines) {
        html.append(paragraph(lines.strip()));
        markdown.append("\n").append(lines);
    }

    /**
     * The command of tasks or facts.
     *
     * @param several whether caches of one name had several settings
     * @param unknown whether settings are not in it, since the file does not say them
     */
    private void command(String command, boolean several, boolean unknown) {
        if (several) {
            text(SEVERAL);
        }
        if (unknown) {
            text(UNKNOWN);
        }
        command(command);
    }

    private void command(String command) {
        html.append("<pre>").append(escape(command)).append("</pre>\n");
        markdown.append("\n    ").append(command.replaceAll("\\R", "\n    ")).append("\n");
    }

    private static List<String[]> rows(List<RunResult> runs) {
        List<String[]> rows = new ArrayList<>();
        rows.add(new String[] {
            "strategy",
            "saved",
            "cells",
            "KL",
            "+/-",
            "KL p99",
            "perplexity",
            "full cache",
            "same top",
            "flash attention",
            "KV MiB",
            "overhead"
        });
        for (RunResult r : runs) {
            rows.add(new String[] {
                r.strategy(),
                Table.percent(r.compression()) + " %",
                Integer.toString(r.cells()),
                Table.number("%.5f", r.klMean()),
                Table.number("%.5f", r.klSe()),
                Table.number("%.3f", r.klP99()),
                Table.number("%.3f", r.perplexity()),
                Table.number("%.3f", r.perplexityFull()),
                r.top1Agreement() == null ? "-" : Table.number("%.1f %%", 100 * r.top1Agreement()),
                r.flashAttention() == null ? "-" : r.flashAttention(),
                r.kvBytes() == null ? "-" : Table.number("%.1f", r.kvBytes() / 1048576.0),
                overhead(r)
            });
        }
        return rows;
    }

    /**
     * Writes a table.
     *
     * @param rows the first has the columns' names
     * @param sizes columns that tell a part's rows from the next's: the first row of a part is the best, and bold; none
     *     where rows are in no such order
     */
    private void table(List<String[]> rows, int... sizes) {
        html.append("<table><thead><tr>");
        for (String head : rows.getFirst()) {
            html.append("<th>").append(escape(head)).append("</th>");
        }
        html.append("</tr></thead><tbody>\n");
        markdown.append("\n| ")
                .append(cells(rows.getFirst()))
                .append(" |\n|")
                .append(" :-- |")
                .append(" --: |".repeat(rows.getFirst().length - 1))
                .append("\n");
        for (int i = 1; i < rows.size(); i++) {
            String[] row = rows.get(i);
            String[] above = rows.get(i - 1);
            boolean best = Arrays.stream(sizes).anyMatch(column -> !row[column].equals(above[column]));
            html.append(best ? "<tr class=\"best\">" : "<tr>");
            for (String cell : row) {
                html.append("<td>").append(escape(cell)).append("</td>");
            }
            html.append("</tr>\n");
            markdown.append("| ").append(cells(row)).append(" |\n");
        }
        html.append("</tbody></table>\n");
    }

    private static String overhead(RunResult r) {
        return r.secondsDecode() == null
                        || r.secondsObserve() == null
                        || r.secondsPlan() == null
                        || r.secondsApply() == null
                ? "-"
                : Table.number(
                        "%.1f %%", 100 * (r.secondsObserve() + r.secondsPlan() + r.secondsApply()) / r.secondsDecode());
    }

    private void plots(Path folder, String name) {
        try (Stream<Path> files = Files.list(folder)) {
            for (Path file :
                    files.filter(f -> f.toString().endsWith(".svg")).sorted().toList()) {
                figure(Files.readString(file));
            }
        } catch (IOException e) {
            missing(name, "the plots cannot be read: " + e.getMessage());
        }
    }

    private void figure(String svg) {
        html.append("<figure>")
                .append(svg.substring(Math.max(0, svg.indexOf("<svg"))))
                .append("</figure>\n");
    }

    private static String cells(String[] row) {
        return Arrays.stream(row).map(cell -> plain(cell).replace("|", "\\|")).collect(Collectors.joining(" | "));
    }

    /** As Markdown takes it for text on one line: names come from files that anyone may have written. */
    private static String plain(String text) {
        return text.replaceAll("\\R", " ").replace("<", "&lt;");
    }

    private static String paragraph(String text) {
        return "<p>" + escape(text) + "</p>\n";
    }

    private static String escape(String text) {
        return text.replace("&", "&amp;")
                .replace("<", "&lt;")
                .replace(">", "&gt;")
                .replace("\"", "&quot;");
    }
}
