package dev.kvmerge;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.llama.LlamaLibrary;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * The recipes can be followed: short, and what they name is there. The strategy that docs show is followed by
 * DocsJavaTest.
 */
@Tag("fast")
class ContributingTest {
    private static final Path HOME = TestModel.HOME;

    /** The recipes' steps, by title. */
    private static Map<String, List<String>> recipes() throws IOException {
        Map<String, List<String>> recipes = new LinkedHashMap<>();
        for (String section : Files.readString(HOME.resolve("CONTRIBUTING.md")).split("(?m)^## ")) {
            List<String> steps = Pattern.compile("(?ms)^\\d+\\. .*?(?=^\\d+\\. |\\z)")
                    .matcher(section)
                    .results()
                    .map(r -> r.group().replaceAll("\\s+", " "))
                    .toList();
            if (!steps.isEmpty()) {
                recipes.put(section.lines().findFirst().orElseThrow(), steps);
            }
        }
        return recipes;
    }

    @Test
    void everyRecipeHasTenStepsAtMost() throws IOException {
        assertEquals(
                List.of(
                        "Make a release",
                        "Add a strategy",
                        "Add a kernel",
                        "Add a command",
                        "Take a new llama.cpp version"),
                List.copyOf(recipes().keySet()));
        recipes().forEach((title, steps) -> {
            assertTrue(steps.size() <= 10, title + " has " + steps.size() + " steps");
            for (int i = 0; i < steps.size(); i++) {
                assertTrue(steps.get(i).startsWith(i + 1 + ". "), title + ": " + steps.get(i));
            }
        });
    }

    @Test
    void everyFileThatAStepNamesIsThere() throws IOException {
        int files = 0;
        for (var recipe : recipes().entrySet()) {
            for (String step : recipe.getValue()) {
                Matcher path = Pattern.compile(
                                "`((?:src|native|jextract|benchmarks|docs|bin)/[\\w./-]*|models.txt|CHANGELOG.md)")
                        .matcher(step);
                while (path.find()) {
                    boolean ofLlama = path.group(1).startsWith("src/llama-");
                    assertTrue(
                            ofLlama || Files.exists(HOME.resolve(path.group(1))),
                            recipe.getKey() + ": " + path.group(1));
                    files++;
                }
            }
        }
        assertTrue(files > 20);
    }

    /** The version of llama.cpp stands in one line, its packages' in another; the lines that fetch it have neither. */
    @Test
    void theVersionOfLlamaCppStandsOnce() throws IOException {
        String list = Files.readString(HOME.resolve("models.txt"));
        assertTrue(list.contains("\nllama.cpp = " + LlamaLibrary.VERSION + "\n"), LlamaLibrary.VERSION);
        List<String> lines =
                list.lines().filter(l -> l.startsWith("llama.cpp-")).toList();
        assertEquals(4, lines.size());
        for (String line : lines) {
            assertTrue(line.contains("@${node-llama-cpp} ") && line.contains("llama.cpp v${llama.cpp}"), line);
        }
        Pattern version = Pattern.compile("(?<![\\d.])" + Pattern.quote(LlamaLibrary.VERSION) + "(?![\\d.])");
        for (String source : List.of("src/library/src/main", "src/lab/src/main", "native/src", "native/cmake", "bin")) {
            try (Stream<Path> files = Files.walk(HOME.resolve(source))) {
                for (Path file : files.filter(Files::isRegularFile).toList()) {
                    for (String line : Files.readAllLines(file, StandardCharsets.ISO_8859_1)) {
                        boolean comment = line.strip().matches("(//|/?\\*|#).*") || line.contains("// ");
                        assertTrue(comment || !version.matcher(line).find(), file + ": " + line);
                    }
                }
            }
        }
    }

    @Test
    void theWrapperFetchesMavenFromTheCentralRepositoryAndChecksIt() throws IOException {
        String wrapper = Files.readString(HOME.resolve(".mvn/wrapper/maven-wrapper.properties"));
        assertTrue(wrapper.contains("distributionUrl=https://repo.maven.apache.org/maven2/"), wrapper);
        assertTrue(wrapper.matches("(?s).*distributionSha256Sum=[0-9a-f]{64}\\s.*"), wrapper);
    }

    @Test
    void theFastTestsLeaveTheSlowOnesAndAllOthersRunInMakeTest() throws IOException {
        String pom = Files.readString(HOME.resolve("pom.xml"));
        String fast = pom.replaceAll("(?s).*<id>fast</id>(.*?)</profile>.*", "$1");
        assertTrue(
                fast.contains("<value>fast</value>") && fast.contains("<excludedGroups>slow</excludedGroups>"), fast);
        assertFalse(pom.replace(fast, "").contains("roups>"), "no other build leaves tests out");
        String make = Files.readString(HOME.resolve("Makefile"));
        assertTrue(make.contains("\ntest-java: build setup\n\t$(MAVEN) -B -ntp test\n"), "all of Java's");
    }

    @Test
    void everyTestSaysWhatItNeeds() throws IOException {
        Pattern tag = Pattern.compile("@(?:ArchTag|Tag|net\\.jqwik\\.api\\.Tag)\\(\"(?:fast|npm|native|model)\"\\)");
        try (Stream<Path> files = Files.walk(HOME.resolve("src"))) {
            for (Path file : files.filter(f -> f.toString().matches(".*/src/test/.*Test\\.java"))
                    .toList()) {
                String source = Files.readString(file);
                assertTrue(
                        tag.matcher(source).find(), file + " has no @Tag that says what it needs: see CONTRIBUTING.md");
                assertTrue(
                        !source.contains("net.jqwik.api.Property") || source.contains("@net.jqwik.api.Tag("),
                        file + " has properties but no @net.jqwik.api.Tag");
            }
        }
    }
}
