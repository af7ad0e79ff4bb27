package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.Child;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Libraries in every order, and wrong ones before the right: each in a JVM of its own. */
@Tag("native")
class LoadOrderTest {
    private static final String KVMERGE = "kvmerge=" + TestModel.nativeLibrary();
    private static final String LLAMA = "llama=" + TestModel.llamaFolder();

    @TempDir
    Path folder;

    private List<String> run(List<String> options, String... steps) throws IOException, InterruptedException {
        Child.Result result = Child.run(folder, options, LoadOrderMain.class, steps);
        assertEquals(0, result.code(), result.output());
        List<String> lines = result.output()
                .lines()
                .filter(line -> line.startsWith("ok ") || line.startsWith("refused "))
                .toList();
        assertEquals(steps.length, lines.size(), result.output());
        return lines;
    }

    private static void assertAll(List<String> lines, String... starts) {
        for (int i = 0; i < starts.length; i++) {
            assertTrue(lines.get(i).startsWith(starts[i]), lines.get(i));
        }
    }

    private String model() {
        Geometry tiny = new Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        return "model=" + TinyGguf.write(folder.resolve("tiny.gguf"), tiny);
    }

    /** A folder like llama.cpp's. */
    private Path copy(String name) throws IOException {
        Path copy = Files.createDirectory(folder.resolve(name));
        try (Stream<Path> files = Files.list(TestModel.llamaFolder())) {
            for (Path file : files.toList()) {
                Files.copy(file, copy.resolve(file.getFileName()));
            }
        }
        return copy;
    }

    private static Path truncate(Path library, double share) throws IOException {
        byte[] bytes = Files.readAllBytes(library);
        Files.delete(library);
        return Files.write(library, Arrays.copyOf(bytes, (int) (share * bytes.length)));
    }

    @Test
    void everyOrderWorks() throws Exception {
        run(List.of(), KVMERGE, LLAMA, model(), "score", "observer").forEach(line -> assertAll(List.of(line), "ok"));
        run(List.of(), LLAMA, KVMERGE, model(), "score", "observer").forEach(line -> assertAll(List.of(line), "ok"));
        assertAll(
                run(List.of(), LLAMA, model(), "score", "version", KVMERGE, "score", "observer"),
                "ok",
                "ok",
                "refused score: libkvmerge is not loaded: call Kvmerge.load, or say where it is with",
                "refused version",
                "ok",
                "ok",
                "ok");
        List<String> found =
                List.of("-Dkvmerge.native.dir=" + TestModel.nativeLibrary().getParent());
        run(found, "score", LLAMA, "observer", KVMERGE).forEach(line -> assertAll(List.of(line), "ok"));
    }

    @Test
    void aForeignLibraryIsRefusedAndTheRightOneLoadsAfterIt() throws Exception {
        Path foreign = find("libggml-base");
        Path text = Files.writeString(folder.resolve("libtext.so"), "not a library");
        Path truncated = Files.copy(TestModel.nativeLibrary(), folder.resolve("libkvmerge.so"));
        truncate(truncated, 0.5);
        assertAll(
                run(
                        List.of(),
                        "kvmerge=" + foreign,
                        "kvmerge=" + text,
                        "kvmerge=" + truncated,
                        "kvmerge=" + folder.resolve("missing.so"),
                        KVMERGE,
                        KVMERGE,
                        LLAMA,
                        "score"),
                "refused kvmerge: " + foreign + " is not libkvmerge: it has no kvmerge_abi()",
                "refused kvmerge: cannot load " + text,
                "refused kvmerge: cannot load " + truncated + ": it is truncated",
                "refused kvmerge: no native library at",
                "ok",
                "ok",
                "ok",
                "ok");
    }

    private static Path find(String name) throws IOException {
        try (Stream<Path> files = Files.list(TestModel.llamaFolder())) {
            return files.filter(f -> f.getFileName().toString().matches(name + "(\\.v[0-9.]+)?\\.so"))
                    .findFirst()
                    .orElseThrow()
                    .toRealPath();
        }
    }

    @Test
    void aBrokenLlamaIsRefusedAndTheRightOneLoadsAfterIt() throws Exception {
        Path empty = Files.createDirectory(folder.resolve("empty"));
        Path broken = copy("broken");
        truncate(broken.resolve(find("libggml-base").getFileName()), 0.7);
        Path backend = copy("backend");
        truncate(backend.resolve("libggml-cpu-x64.so"), 0.7);
        assertAll(
                run(List.of(), "llama=" + empty, "llama=" + broken, "llama=" + backend, KVMERGE, LLAMA, model()),
                "refused llama: no libggml-base library in " + empty,
                "refused llama: cannot load " + broken,
                "refused llama: cannot load " + backend,
                "ok",
                "ok",
                "ok");
    }

    @Test
    void aFolderWithoutDevicesIsRefusedEachTime() throws Exception {
        Path bare = copy("bare");
        try (Stream<Path> files = Files.list(bare)) {
            for (Path file :
                    files.filter(f -> f.toString().contains("ggml-cpu")).toList()) {
                Files.delete(file);
            }
        }
        assertAll(
                run(List.of(), "llama=" + bare, "llama=" + bare, LLAMA),
                "refused llama: the llama.cpp at " + bare.toRealPath() + " has no compute backend",
                "refused llama: the llama.cpp at " + bare.toRealPath() + " has no compute backend",
                "refused llama: llama.cpp is already loaded from " + bare.toRealPath());
    }

    @Test
    void aSecondBuildIsRefused() throws Exception {
        Path second = copy("second");
        Path around = TestModel.llamaFolder()
                .resolve("..")
                .resolve(TestModel.llamaFolder().getFileName());
        Path other = Files.createDirectory(folder.resolve("other")).resolve("libkvmerge.so");
        Files.copy(TestModel.nativeLibrary(), other);
        assertAll(
                run(List.of(), LLAMA, "llama=" + second, "llama=" + around, KVMERGE, "kvmerge=" + other, "score"),
                "ok",
                "refused llama: llama.cpp is already loaded from",
                "ok",
                "ok",
                "refused kvmerge: libkvmerge is already loaded from",
                "ok");
    }

    @Test
    void aLibraryCutAnywhereIsTruncated() throws Exception {
        Path whole = find("libggml-base");
        ElfFile.checkWhole(whole);
        byte[] bytes = Files.readAllBytes(whole);
        for (int length : new int[] {4, 63, 64, 200, 4096, bytes.length / 2, bytes.length - 1}) {
            Path cut = Files.write(folder.resolve("cut.so"), Arrays.copyOf(bytes, length));
            String message = assertThrows(KvmergeException.class, () -> ElfFile.checkWhole(cut))
                    .getMessage();
            assertTrue(message.startsWith("cannot load " + cut + ": it is truncated, " + length + " bytes"), message);
        }
        Random random = new Random(4);
        for (int i = 0; i < 300; i++) { // nothing but a refusal may come of a header full of nonsense
            byte[] wrong = Arrays.copyOf(bytes, 4096);
            for (int flips = 0; flips < 4; flips++) {
                wrong[4 + random.nextInt(500)] ^= (byte) (1 << random.nextInt(8));
            }
            Path file = Files.write(folder.resolve("wrong.so"), wrong);
            try {
                ElfFile.checkWhole(file);
            } catch (KvmergeException e) {
                assertTrue(e.getMessage().contains("wrong.so"), e.getMessage());
            }
        }
    }
}
