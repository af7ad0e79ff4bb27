package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.report.Pages;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import picocli.CommandLine;
import picocli.CommandLine.Model.CommandSpec;

/** What the pages say is there is there: commands, options, make's targets, files, figures. */
@Tag("fast")
class DocsTest {
    private static final Path HOME = TestModel.HOME;
    private static final Path DOCS = HOME.resolve("docs");
    private static final Pattern FENCED = Pattern.compile("(?sm)^```\\w*\\n(.*?)^```");
    private static final Pattern CODE = Pattern.compile("`([^`]+)`");
    // Of programs that are no kvmerge: the JVM, cmake, llama.cpp's tools, pip.
    private static final Set<String> FOREIGN =
            Set.of("--enable-native-access", "--install", "--help", "--prefix", "--tags");

    private static CommandLine kvmerge() {
        return new CommandLine(new Main()).setCaseInsensitiveEnumValuesAllowed(true);
    }

    /** Every page by its path, but for the changelog, whose older sections name what is gone. */
    private static Map<Path, String> pages() throws IOException {
        try (Stream<Path> files = Stream.concat(
                Stream.of("README.md", "CONTRIBUTING.md", "UPGRADING.md")
                        .map(HOME::resolve)
                        .filter(Files::exists),
                Files.walk(DOCS)
                        .filter(f -> f.toString().endsWith(".md") && !f.startsWith(DOCS.resolve("templates"))))) {
            return files.collect(Collectors.toMap(f -> f, DocsTest::read));
        }
    }

    private static String read(Path file) {
        return assertDoesNotThrow(() -> Files.readString(file));
    }

    @Test
    void writtenPagesAreAsTheyWouldBeWrittenNow() {
        DocsCommand.pages(DOCS, kvmerge().getCommandSpec())
                .forEach((name, text) -> assertEquals(
                        text,
                        read(DOCS.resolve(name)),
                        "docs/" + name + " is not what it is made of: run 'make docs'"));
    }

    @Test
    void everyTableSaysHowItWasMadeAndIsShown() throws IOException {
        assertEquals(List.of(), Pages.problems(DOCS));
        try (Stream<Path> templates = Files.list(DOCS.resolve("templates"));
                Stream<Path> results = Files.list(DOCS.resolve("results"))) {
            String all = templates.map(DocsTest::read).collect(Collectors.joining());
            results.map(f -> f.getFileName().toString().replace(".csv", ""))
                    .forEach(name -> assertTrue(
                            Pattern.compile("\\{\\{table " + name + "[ }]")
                                    .matcher(all)
                                    .find(),
                            "no template shows docs/results/" + name + ".csv"));
        }
    }

    @Test
    void everyCommandLineCanBeParsed() throws IOException {
        int lines = 0;
        for (var page : pages().entrySet()) {
            for (String code : code(page.getValue())) {
                for (String line : code.replace("\\\n", " ").split("\n")) {
                    Matcher command = Pattern.compile(".*?\\bbin/kvmerge (.*)").matcher(line.replaceAll("\\s+#.*", ""));
                    if (command.matches() && !command.group(1).contains("...")) {
                        String[] arguments = command.group(1).strip().split("\\s+");
                        assertDoesNotThrow(() -> kvmerge().parseArgs(arguments), page.getKey() + ": " + line);
                        lines++;
                    }
                }
            }
        }
        assertTrue(lines > 20, "the docs show more commands than " + lines);
    }

    @Test
    void everyOptionThatIsNamedExists() throws IOException {
        Set<String> known = new TreeSet<>(FOREIGN);
        options(kvmerge().getCommandSpec(), known);
        for (var page : pages().entrySet()) {
            for (String code : code(page.getValue())) {
                if (code.matches("(?s).*\\b(make|cmake|javac|java|pip|mvn|mvnw|ctest|git)\\b.*")) {
                    continue; // options of others
                }
                Matcher option = Pattern.compile("(?<![\\w-])--[a-z][a-z-]+").matcher(code);
                while (option.find()) {
                    assertTrue(
                            known.contains(option.group()), page.getKey() + " names " + option.group() + ": " + code);
                }
            }
        }
    }

    private static void options(CommandSpec command, Set<String> names) {
        command.options().forEach(o -> names.addAll(List.of(o.names())));
        command.subcommands().values().forEach(c -> options(c.getCommandSpec(), names));
    }

    @Test
    void everyTargetOfMakeThatIsNamedExists() throws IOException {
        String makefile = Files.readString(HOME.resolve("Makefile"));
        for (var page : pages().entrySet()) {
            for (String code : code(page.getValue())) {
                Matcher target = Pattern.compile("(?m)^(?:.*; )?make ((?:[a-z][a-z-]*(?: |$))+)")
                        .matcher(code);
                while (target.find()) {
                    for (String name : target.group(1).strip().split(" +")) {
                        assertTrue(
                                Pattern.compile("(?m)^" + name + ":")
                                        .matcher(makefile)
                                        .find(),
                                page.getKey() + " names 'make " + name + "'");
                    }
                }
            }
        }
    }

    @Test
    void everyLinkWithinTheRepositoryLeadsSomewhere() throws IOException {
        for (var page : pages().entrySet()) {
            Matcher link =
                    Pattern.compile("\\]\\((?!https?:)([^)#]*)(#[^)]*)?\\)").matcher(page.getValue());
            while (link.find()) {
                assertTrue(
                        Files.exists(page.getKey().resolveSibling(link.group(1))),
                        page.getKey() + " links to " + link.group(1));
            }
        }
    }

    @Test
    void everyFileThatIsNamedIsThere() throws IOException {
        Pattern path = Pattern.compile("(?:src/(?!llama-)|native|docs|bin|benchmarks|jextract)/[\\w./-]+");
        for (var page : pages().entrySet()) {
            for (String code : code(page.getValue())) {
                assertTrue(
                        !path.matcher(code).matches() || Files.exists(HOME.resolve(code)),
                        page.getKey() + " names the file " + code);
            }
        }
    }

    @Test
    void theMapNamesEveryPage() throws IOException {
        String index = Files.readString(DOCS.resolve("INDEX.md"));
        try (Stream<Path> files = Files.list(DOCS)) {
            files.map(f -> f.getFileName().toString())
                    .filter(f -> f.endsWith(".md") && !f.equals("INDEX.md"))
                    .forEach(f -> assertTrue(index.contains("(" + f + ")"), "docs/INDEX.md does not name " + f));
        }
    }

    @Test
    void theReadmeIsTwoScreens() throws IOException {
        List<String> lines = Files.readAllLines(HOME.resolve("README.md"));
        assertTrue(lines.size() <= 120, "README.md has " + lines.size() + " lines: move the rest to a page of docs");
    }

    /** Fenced blocks and inline code of a page. */
    private static List<String> code(String page) {
        List<String> all = new ArrayList<>();
        Matcher fenced = FENCED.matcher(page);
        while (fenced.find()) {
            all.add(fenced.group(1));
        }
        Matcher inline = CODE.matcher(FENCED.matcher(page).replaceAll(""));
        while (inline.find()) {
            all.add(inline.group(1).replace('\n', ' '));
        }
        return all;
    }
}
