package dev.kvmerge;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.llama.LlamaLibrary;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/**
 * What kvmerge relies on is in the llama.cpp that was fetched. Its headers are checked by the native test relied_on.
 */
class ReliedOnTest {
    private static List<String> list(String kind) throws IOException {
        return Files.readAllLines(ReliedOn.FILE).stream()
                .filter(l -> l.startsWith(kind + " "))
                .map(l -> l.substring(kind.length() + 1))
                .toList();
    }

    private static List<Path> libraries() throws IOException {
        TestModel.library();
        try (Stream<Path> files = Files.list(TestModel.llamaFolder())) {
            return files.filter(
                            f -> f.getFileName().toString().matches("lib(llama|ggml|ggml-base)(\\.v[\\d.]+)?\\.so.*"))
                    .toList();
        }
    }

    private static List<String> missing(List<String> names, Predicate<String> there) {
        return names.stream().filter(there.negate()).toList();
    }

    @Test
    @Tag("fast")
    void theListIsCurrent() throws IOException, ReflectiveOperationException {
        assertEquals(
                ReliedOn.text(),
                Files.readString(ReliedOn.FILE),
                "jextract/relied-on.txt is not what the sources rely on: run 'make relied-on'");
    }

    @Test
    @Tag("native")
    void everySymbolIsInTheLibraries() throws IOException {
        assertEquals(List.of(), missing(List.of("llama_decode"), symbols()));
        assertEquals(List.of("llama_encode_twice"), missing(List.of("llama_encode_twice"), symbols()), "it can fail");
        assertEquals(
                List.of(),
                missing(list("symbol"), symbols()),
                "llama.cpp's libraries (v" + LlamaLibrary.VERSION + ") have no such symbols, which kvmerge relies on");
    }

    private static Predicate<String> symbols() throws IOException {
        List<SymbolLookup> lookups = new ArrayList<>();
        for (Path library : libraries()) {
            lookups.add(SymbolLookup.libraryLookup(library, Arena.global()));
        }
        return name -> lookups.stream().anyMatch(l -> l.find(name).isPresent());
    }

    /**
     * Names of nodes are "NAME-LAYER", of caches "cache_%sk_l%d": so the library's code has NAME, or NAME%d, and a
     * zero.
     */
    @Test
    @Tag("native")
    void everyNameIsInTheLibraries() throws IOException {
        StringBuilder text = new StringBuilder();
        for (Path library : libraries()) {
            text.append(Files.readString(library, StandardCharsets.ISO_8859_1));
        }
        Predicate<String> there = name -> {
            String plain = name.replaceAll("-$", "");
            return text.indexOf(plain + '\0') >= 0 || text.indexOf(plain.replace("cache_", "cache_%s") + "%d\0") >= 0;
        };
        assertTrue(!there.test("kq_hard_max-"), "it can fail");
        assertEquals(
                List.of(),
                missing(list("name"), there),
                "llama.cpp's libraries have no such names, by which kvmerge finds nodes and caches in the graph");
    }
}
