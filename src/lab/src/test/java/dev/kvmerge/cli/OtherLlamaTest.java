package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A user's own llama.cpp that does not fit is told apart before anything of it is used. Each in a process of its own.
 */
@Tag("model")
class OtherLlamaTest {
    @TempDir
    Path folder;

    private String quickstart(Path llama) throws IOException, InterruptedException {
        Path log = folder.resolve("log");
        List<String> command = List.of(
                TestModel.HOME.resolve("bin/kvmerge").toString(),
                "quickstart",
                "--out",
                folder.resolve("out").toString(),
                "--llama-lib",
                llama.toString());
        Process process = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        int code = process.waitFor();
        String text = Files.readString(log);
        assertEquals(1, code, text);
        assertEquals(1, text.lines().filter(l -> l.startsWith("kvmerge: ")).count(), text);
        assertTrue(!text.contains("\tat "), text);
        return text;
    }

    private void compile(String name, String source) throws IOException, InterruptedException {
        Path c = Files.writeString(folder.resolve(name + ".cpp"), source);
        List<String> command = new ArrayList<>(List.of(
                "c++",
                "-shared",
                "-fPIC",
                "-o",
                folder.resolve("lib" + name + ".so").toString(),
                c.toString()));
        assertEquals(0, new ProcessBuilder(command).inheritIO().start().waitFor());
    }

    @Test
    void anotherVersion() throws IOException, InterruptedException {
        compile("ggml-base", "");
        compile("ggml", "");
        compile("llama", "extern \"C\" const char * llama_version() { return \"0.4.2\"; }");
        String text = quickstart(folder);
        assertTrue(text.contains("is version 0.4.2") && text.contains("are for 0.5.0"), text);
        compile("llama", "extern \"C\" int llama_nothing() { return 0; }");
        text = quickstart(folder);
        assertTrue(text.contains("no llama_version()"), text);
    }

    @Test
    void nothingThere() throws IOException, InterruptedException {
        Path empty = Files.createDirectory(folder.resolve("empty"));
        assertTrue(quickstart(empty).contains("no libggml-base library in"), "empty folder");
        assertTrue(quickstart(folder.resolve("missing")).contains("make setup"), "missing folder");
        Files.writeString(empty.resolve("libggml-base.so"), "not a library");
        assertTrue(quickstart(empty).contains("cannot load"), "not a library");
    }
}
