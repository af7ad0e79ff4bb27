package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.report.Pages;
import dev.kvmerge.report.ResultsFolder;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.Map;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** The pages of docs that are written by a command: 'make docs'. */
@Command(
        name = "docs",
        hidden = true,
        mixinStandardHelpOptions = true,
        description =
                "Writes the pages of docs that are made of other files: those with figures, and that of all options.",
        footer = {"", "Example:", "  kvmerge docs --take alice results/alice.txt"})
final class DocsCommand implements Runnable {
    @Option(
            names = "--take",
            paramLabel = "NAME",
            description = "first put what a command printed, FILE, into docs/results/NAME.csv")
    private String take;

    @Parameters(arity = "0..1", paramLabel = "FILE", description = "what the command printed")
    private Path printed;

    @Spec
    private CommandSpec spec;

    @Override
    public void run() {
        if ((take == null) != (printed == null)) {
            throw new KvmergeException.Usage("--take NAME and FILE go together");
        }
        Path docs = Home.path().resolve("docs");
        try (ResultsFolder folder = ResultsFolder.open(docs)) {
            if (take != null) {
                String text = Files.readString(printed);
                Pages.take(
                                docs,
                                take,
                                text,
                                LocalDate.now(),
                                Provenance.cpu(),
                                "llama.cpp v" + LlamaLibrary.VERSION + ", JDK "
                                        + Runtime.version().feature())
                        .forEach(folder::write);
            }
            pages(docs, spec.root()).forEach(folder::write);
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + printed + ": " + e, e);
        }
    }

    /** All pages that are written by this command, by their path within docs. */
    static Map<String, String> pages(Path docs, CommandSpec root) {
        Map<String, String> pages = Pages.render(docs);
        pages.put("kl.svg", Pages.plot(docs));
        pages.put("memory.svg", Pages.frontier(docs));
        pages.put("lengths.svg", Pages.lengths(docs));
        pages.put("options.md", OptionsPage.of(root.commandLine()));
        return pages;
    }
}
