package dev.kvmerge;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The Java that docs show compiles, and the strategy among it runs. The table of strategies names those that there are.
 */
class DocsJavaTest {
    private static final Path DOCS = TestModel.HOME.resolve("docs");
    private static final String IMPORTS = """
            import dev.kvmerge.attention.*;
            import dev.kvmerge.cache.*;
            import dev.kvmerge.engine.*;
            import dev.kvmerge.kernels.*;
            import dev.kvmerge.llama.*;
            import dev.kvmerge.strategy.*;
            import java.lang.foreign.MemorySegment;
            import java.nio.file.*;
            import java.util.Arrays;
            """;

    @TempDir
    Path folder;

    /** All Java blocks of README.md and docs. */
    private static List<String> blocks() throws IOException {
        List<String> blocks = new ArrayList<>();
        try (Stream<Path> pages = Stream.concat(Stream.of(TestModel.HOME.resolve("README.md")), Files.walk(DOCS))) {
            for (Path page : pages.filter(f -> f.toString().endsWith(".md")).toList()) {
                Matcher code = Pattern.compile("(?s)```java\\n(.*?)```").matcher(Files.readString(page));
                while (code.find()) {
                    blocks.add(code.group(1));
                }
            }
        }
        return blocks;
    }

    private void compile(String name, String source) throws IOException {
        Path file = Files.writeString(folder.resolve(name + ".java"), source);
        ByteArrayOutputStream errors = new ByteArrayOutputStream();
        int result = ToolProvider.getSystemJavaCompiler()
                .run(
                        null,
                        null,
                        errors,
                        "-cp",
                        System.getProperty("java.class.path"),
                        "-d",
                        folder.toString(),
                        file.toString());
        assertEquals(0, result, errors + "\n" + source);
    }

    @Test
    @Tag("fast")
    @Tag("slow")
    void everyBlockCompiles() throws IOException {
        List<String> blocks = blocks();
        assertTrue(blocks.size() >= 2, "a strategy and a program");
        int number = 0;
        for (String block : blocks) {
            Matcher type =
                    Pattern.compile("(?m)^public (?:class|record) (\\w+)").matcher(block);
            if (type.find()) {
                compile(type.group(1), block);
            } else {
                String name = "Program" + number++;
                compile(name, IMPORTS + "class " + name + " { void main() throws Exception {\n" + block + "}}\n");
            }
        }
    }

    @Test
    @Tag("model")
    void theStrategyRuns() throws Exception {
        String source = blocks().stream()
                .filter(b -> b.contains("class SmallKeys"))
                .findFirst()
                .orElseThrow();
        assertTrue(source.lines().count() <= 25, "twenty lines, it says");
        compile("SmallKeys", source);
        try (URLClassLoader loader = new URLClassLoader(
                        new URL[] {folder.toUri().toURL()}, getClass().getClassLoader());
                CompressedContext context = new CompressedContext(
                        TestModel.model(),
                        (Strategy) loader.loadClass("SmallKeys")
                                .getDeclaredConstructor()
                                .newInstance(),
                        CacheOptions.of(48, 32))) {
            for (int at = 0; at < 128; at += 32) {
                context.decode(TestModel.book(at, 32));
            }
            assertEquals(48, context.used());
            assertTrue(Float.isFinite(context.logits().get(ValueLayout.JAVA_FLOAT, 0)));
        }
    }

    @Test
    @Tag("fast")
    void theTableNamesTheStrategiesThatThereAre() throws IOException {
        TreeSet<String> named = new TreeSet<>();
        for (String line : Files.readAllLines(DOCS.resolve("strategies.md"))) {
            if (line.startsWith("| `")) {
                Matcher name = Pattern.compile("`([a-z0-9_-]+)`").matcher(line.substring(0, line.indexOf('|', 1)));
                while (name.find()) {
                    named.add(name.group(1));
                }
            }
        }
        named.add("entropy-merged-row"); // a row's second name
        assertEquals(new TreeSet<>(Strategies.names()), named);
    }
}
