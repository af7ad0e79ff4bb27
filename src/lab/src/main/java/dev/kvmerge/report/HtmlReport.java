package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;

/**
 * All experiments of a folder on one page: tables sorted by KL, the plots inside the page, versions, and the command
 * that reproduces each. An experiment whose results are broken or not whole is named with what is missing, and the
 * others are shown.
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

    private HtmlReport() {}

    /**
     * Makes the page.
     *
     * @param root what names are relative to
     * @param folders with a results.json each
     */
    public static HtmlReport of(Path root, List<Path> folders) {
        HtmlReport page = new HtmlReport();
        page.html
                .append("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
                        + "content=\"width=device-width\">\n")
                .append("<title>kvmerge results</title>\n<style>\n")
                .append(STYLE)
                .append("</style>\n<h1>kvmerge results</h1>\n")
                .append(paragraph(METHOD));
        page.markdown.append("# kvmerge results\n\n").append(METHOD).append("\n");
        for (Path folder : folders) {
            Path relative = root.relativize(folder);
            page.experiment(
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

    private void experiment(Path folder, String name) {
        html.append("<h2>").append(escape(name)).append("</h2>\n");
        markdown.append("\n## ").append(name).append("\n\n");
        Report report;
        try {
            report = ResultsFolder.read(folder);
        } catch (KvmergeException e) {
            missing(name, e.getMessage());
            return;
        }
        String facts = String.format(
                Locale.ROOT,
                "%s, %,d tokens of %s from token %,d, block %d, %d threads, flash attention %s, cells %s/%s; kvmerge "
                        + "%s, llama.cpp %s, JDK %s, %s on %s.",
                report.model().description(),
                report.settings().tokens(),
                report.text().name(),
                report.text().offset(),
                report.settings().block(),
                report.settings().threads(),
                report.flashAttention(),
                report.settings().keyType(),
                report.settings().valueType(),
                report.versions().kvmerge(),
                report.versions().llamaCpp(),
                report.versions().jdk(),
                report.machine() == null
                        ? "an unknown machine"
                        : report.machine().cpu(),
                report.machine() == null
                        ? "an unknown device"
                        : report.machine().device());
        html.append("<p class=\"facts\">").append(escape(facts)).append("</p>\n");
        markdown.append(facts).append("\n\n");
        List<RunResult> compressed = report.runs().stream()
                .filter(r -> r.compression() > 0)
                .sorted(Comparator.comparingDouble(RunResult::compression)
                        .thenComparing(r -> r.klMean() == null ? Double.MAX_VALUE : r.klMean()))
                .toList();
        if (compressed.isEmpty()) {
            missing(
                    name,
                    "no compressed run is finished: go on with 'kvmerge experiment --out " + folder + " --resume'");
        } else {
            table(compressed);
        }
        report.runs().stream()
                .filter(r -> r.strategy().equals(Experiment.AGAIN))
                .map(Table::floor)
                .forEach(floor -> {
                    html.append(paragraph(floor.strip()));
                    markdown.append("\n").append(floor);
                });
        List<String> without = compressed.stream()
                .filter(r -> r.klMean() == null || r.perplexity() == null)
                .map(RunResult::id)
                .toList();
        if (!without.isEmpty()) {
            missing(name, "no KL or perplexity of " + String.join(", ", without));
        }
        String command = CommandLine.of(report);
        html.append("<pre>").append(escape(command)).append("</pre>\n");
        markdown.append("\n    ").append(command).append("\n");
        plots(folder, name);
    }

    private void missing(String name, String what) {
        problems.add(name + ": " + what);
        html.append("<p class=\"missing\">").append(escape(what)).append("</p>\n");
        markdown.append("Missing: ").append(what).append("\n");
    }

    private void table(List<RunResult> runs) {
        String[] head = {
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
        };
        html.append("<table><thead><tr>");
        for (String h : head) {
            html.append("<th>").append(h).append("</th>");
        }
        html.append("</tr></thead><tbody>\n");
        markdown.append("| ")
                .append(String.join(" | ", head))
                .append(" |\n|")
                .append(" :-- |")
                .append(" --: |".repeat(head.length - 1))
                .append("\n");
        double last = -1;
        for (RunResult r : runs) {
            String[] cells = {
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
            };
            html.append(r.compression() == last ? "<tr>" : "<tr class=\"best\">");
            last = r.compression();
            for (String c : cells) {
                html.append("<td>").append(escape(c)).append("</td>");
            }
            html.append("</tr>\n");
            markdown.append("| ").append(String.join(" | ", cells)).append(" |\n");
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
                String svg = Files.readString(file);
                html.append("<figure>")
                        .append(svg.substring(Math.max(0, svg.indexOf("<svg"))))
                        .append("</figure>\n");
            }
        } catch (IOException e) {
            missing(name, "the plots cannot be read: " + e.getMessage());
        }
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
