package dev.kvmerge;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What bin/check-lines lists, in a repository of its own. */
@Tag("fast")
class LinesTest {
    private static final String LONG = "x".repeat(121);

    @TempDir
    Path folder;

    private String run(int expected, String... command) throws IOException, InterruptedException {
        Process process = new ProcessBuilder(command)
                .directory(folder.toFile())
                .redirectErrorStream(true)
                .start();
        String said = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertEquals(expected, process.waitFor(), said);
        return said;
    }

    private void write(String name, String... lines) throws IOException {
        Path file = folder.resolve(name);
        Files.createDirectories(file.getParent());
        Files.write(file, List.of(lines));
    }

    @Test
    void longLinesAreListedButForTablesLinksAndData() throws Exception {
        run(0, "git", "init", "-q", ".");
        Files.createDirectories(folder.resolve("bin"));
        Files.copy(TestModel.HOME.resolve("bin/check-lines"), folder.resolve("bin/check-lines"));
        assertTrue(folder.resolve("bin/check-lines").toFile().setExecutable(true));
        write("page.md", "| " + LONG + " |", "[a](https://example.org/" + LONG + ")", "é".repeat(120));
        write("src/data.json", LONG);
        write("jextract/generated/A.java", LONG);
        run(0, "bin/check-lines");
        write("src/A.java", "short", "// " + LONG);
        write("other.md", LONG, "é".repeat(121));
        String said = run(1, "bin/check-lines");
        assertTrue(said.contains("src/A.java:2: //"), said);
        assertTrue(said.contains("other.md:1: x") && said.contains("other.md:2: é"), said);
        assertTrue(said.contains("3 lines are longer than 120 columns"), said);
        run(0, "bin/check-lines", "page.md");
    }
}
