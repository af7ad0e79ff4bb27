package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Machines with little on them: no fonts, no desktop libraries, no locale. */
@Tag("model")
class BareMachineTest {
    private static final List<String> NO_DESKTOP = List.of("--limit-modules", "java.base");

    @TempDir
    Path folder;

    /** A JVM that has nothing but java.base, and so neither fonts nor what reads them. */
    private void plots(String args, String... expected) throws IOException, InterruptedException {
        Path home = Files.createDirectories(folder.resolve("home"));
        Path out = folder.resolve(args.substring(0, args.indexOf(' ')));
        List<String> words = new java.util.ArrayList<>(List.of(args.split(" ")));
        words.addAll(List.of("-t", "1", "--out", out.toString()));
        Child.java(
                        NO_DESKTOP,
                        Map.of("FONTCONFIG_FILE", "/dev/null", "HOME", home.toString()),
                        words.toArray(String[]::new))
                .ended(0);
        for (String name : expected) {
            String svg = Files.readString(out.resolve(name));
            assertTrue(svg.contains("<svg") && svg.endsWith("</svg>\n"), name);
        }
    }

    @Test
    void everyCommandThatPlotsNeedsNoFont() throws IOException, InterruptedException {
        plots(
                "experiment --tokens 320 --strategies streaming-llm --compression 0.5",
                "kl.svg",
                "perplexity.svg",
                "speed.svg",
                "memory.svg",
                "running-perplexity.svg",
                "kl-along-text.svg");
        plots(
                "endless --strategies streaming-llm --cells 96 --block 32 --tokens 256 --full-tokens 256 --stretch 128",
                "endless.svg");
        plots("ablate --vary recent-share=0.2,0.6 --tokens 320 --compression 0.5", "recent-share.svg");
        plots(
                "analyze --tokens 128 -b 64",
                "entropy-by-head.svg",
                "entropy-along-text.svg",
                "entropy-distribution.svg");
        Child.java(NO_DESKTOP, Map.of(), "report", folder.toString()).ended(0);
        assertTrue(Files.readString(folder.resolve("report.html")).contains("<svg"));
    }

    /** The names are made by the shell: this JVM itself may run in a locale that cannot say them. */
    @ParameterizedTest
    @ValueSource(strings = {"LC_ALL=C", "LC_ALL=POSIX", "LC_ALL= LC_CTYPE= LANG="})
    void namesThatAreNotAsciiInALocaleThatIs(String locale) throws IOException, InterruptedException {
        String script = """
                cd '%s'
                name=$(printf 'B\\303\\274cher \\346\\233\\270')
                trap 'rm -rf "$name"' EXIT
                mkdir -p "$name/target" "$name/build/native"
                cp -r '%s/bin' '%s/models.txt' "$name/"
                cp '%s/target/kvmerge.jar' "$name/target/"
                cp '%s'/build/native/libkvmerge.* "$name/build/native/"
                ln -s '%s' "$name/$name.gguf"
                cp '%s' "$name/$name.txt"
                export %s
                "$name/bin/kvmerge" perplexity -m "$name/$name.gguf" -f "$name/$name.txt" -c 64 --chunks 1 -t 1
                "$name/bin/kvmerge" quickstart -m "$name/$name.gguf" --out "$name/$name" -t 1
                ls "$name/$name"
                "$name/bin/kvmerge" perplexity -f "$name/none.txt" || echo "code $?"
                """.formatted(
                        folder,
                        TestModel.HOME,
                        TestModel.HOME,
                        TestModel.HOME,
                        TestModel.HOME,
                        TestModel.path(),
                        TestModel.downloads().resolve("texts/alice.txt"),
                        locale);
        Child child = Child.shell(
                script, Map.of("KVMERGE_DOWNLOADS", TestModel.downloads().toString()));
        String text = child.ended(0);
        assertTrue(text.contains("Final estimate: PPL = "), text);
        assertTrue(text.contains("quickstart.csv") && text.contains("\nAll works."), text);
        assertTrue(text.contains("\ncode 1"), text);
        assertTrue(text.contains("B\u00fccher \u66f8/none.txt"), "the output is UTF-8: " + text);
    }

    /** Without bin/kvmerge nobody chooses a locale: such a name is refused, with the remedy. */
    @Test
    void namesThatTheJvmCannotSayAreRefused() throws IOException, InterruptedException {
        byte[] name = "B\u00fccher.txt".getBytes(StandardCharsets.UTF_8);
        StringBuilder octal = new StringBuilder();
        for (byte b : name) {
            octal.append(String.format("\\%03o", b & 0xFF));
        }
        String text = Child.shell(
                        ("LC_ALL=C '%s/bin/java' -Dkvmerge.home='%s' -cp '%s' dev.kvmerge.cli.Main perplexity -f "
                                        + "\"$(printf '%s')\"")
                                .formatted(
                                        System.getProperty("java.home"),
                                        TestModel.HOME,
                                        System.getProperty("java.class.path"),
                                        octal),
                        Map.of())
                .ended(2);
        assertTrue(text.contains("LC_ALL=C.UTF-8") && !text.contains("\tat "), text);
    }
}
