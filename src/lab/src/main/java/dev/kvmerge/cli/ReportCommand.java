package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.report.HtmlReport;
import dev.kvmerge.report.ResultsFolder;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** One page of all results. */
@Command(
        name = "report",
        mixinStandardHelpOptions = true,
        description = "Writes one self-contained HTML page, and the same tables as Markdown, from the results of "
                + "experiment, ruler and facts in a folder and below it.",
        footer = {"", "Example:", "  kvmerge report results"})
final class ReportCommand implements Runnable {
    @Parameters(
            arity = "0..1",
            paramLabel = "DIR",
            defaultValue = "results",
            description = "a folder of results (default: ${DEFAULT-VALUE})")
    private Path folder;

    @Option(names = "--out", paramLabel = "FILE", description = "the page (default: report.html in the folder)")
    private Path out;

    @Override
    public void run() {
        if (!Files.isDirectory(folder)) {
            throw new KvmergeException.Usage(
                    (Files.exists(folder) ? folder + " is no folder" : "there is no folder " + folder)
                            + ": give the one that --out of 'kvmerge experiment', 'ruler' or 'facts' named");
        }
        List<Path> folders;
        try (Stream<Path> files = Files.walk(folder)) {
            folders = files.filter(ResultsFolder::isReported)
                    .map(Path::getParent)
                    .distinct()
                    .sorted()
                    .toList();
        } catch (IOException | UncheckedIOException e) { // the second where a folder below cannot be read
            throw new KvmergeException("cannot read the folder " + folder + ": " + e.getMessage(), e);
        }
        if (folders.isEmpty()) {
            throw new KvmergeException("none of " + String.join(", ", ResultsFolder.REPORTED) + " in " + folder
                    + " or below: run 'kvmerge experiment', 'ruler' or 'facts' first");
        }
        HtmlReport page = HtmlReport.of(folder, folders);
        Path html = out == null ? folder.resolve("report.html") : out;
        Path markdown = html.resolveSibling(html.getFileName().toString().replaceFirst("\\.html?$", "") + ".md");
        try (ResultsFolder to = ResultsFolder.open(html.toAbsolutePath().getParent())) {
            to.write(html.getFileName().toString(), page.html());
            to.write(markdown.getFileName().toString(), page.markdown());
        }
        page.problems().forEach(p -> System.err.println("kvmerge: " + p));
        System.out.println("Wrote " + html + " and " + markdown + ": " + folders.size()
                + (folders.size() == 1 ? " folder" : " folders")
                + (page.problems().isEmpty() ? "" : ", " + page.incomplete() + " with something missing") + ".");
    }
}
