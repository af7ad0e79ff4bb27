package dev.kvmerge;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.strategy.Strategy;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What the README shows is what works. */
class ReadmeTest {
    @TempDir
    Path folder;

    private static String block(String containing) throws IOException {
        Matcher code = Pattern.compile("(?s)```java\\n(.*?)```")
                .matcher(Files.readString(TestModel.HOME.resolve("README.md")));
        while (code.find()) {
            if (code.group(1).contains(containing)) {
                return code.group(1);
            }
        }
        throw new AssertionError("no Java block with '" + containing + "' in README.md");
    }

    private void compile(String name, String source) throws IOException {
        Path file = Files.writeString(folder.resolve(name + ".java"), source);
        int result = ToolProvider.getSystemJavaCompiler()
                .run(
                        null,
                        null,
                        null,
                        "-cp",
                        System.getProperty("java.class.path"),
                        "-d",
                        folder.toString(),
                        file.toString());
        assertEquals(0, result, "README.md's " + name + " does not compile");
    }

    @Test
    void theStrategyCompilesAndRuns() throws Exception {
        String source = block("class SmallKeys");
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
    void theProgramCompiles() throws IOException {
        String imports = String.join(
                "\n",
                Arrays.asList(
                        "import dev.kvmerge.cache.*;",
                        "import dev.kvmerge.eval.*;",
                        "import dev.kvmerge.kernels.*;",
                        "import dev.kvmerge.llama.*;",
                        "import dev.kvmerge.strategy.*;",
                        "import java.lang.foreign.MemorySegment;",
                        "import java.nio.file.*;",
                        "import java.util.Arrays;"));
        compile(
                "Program",
                imports + "\nclass Program { void main() throws Exception {\n" + block("new EntropyMerged(") + "}}\n");
    }

    @Test
    void everyOptionAndStrategyItNamesExists() throws IOException {
        String readme = Files.readString(TestModel.HOME.resolve("README.md"));
        for (String name : dev.kvmerge.strategy.Strategies.names()) {
            assertTrue(
                    name.equals("entropy-merged-row") || readme.contains("`" + name + "`"),
                    name + " is missing from the README");
        }
    }
}
