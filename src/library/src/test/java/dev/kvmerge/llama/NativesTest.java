package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.Child;
import dev.kvmerge.Hash;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The libraries from a jar: each time in a JVM of its own, whose cache folder is the test's. */
@Tag("native")
class NativesTest {
    @TempDir
    static Path shared;

    @TempDir
    Path folder;

    private Path cache() {
        return folder.resolve("cache");
    }

    /** What kvmerge-natives has for this machine, or with a byte of one library changed after it was listed. */
    private Path jar(boolean damaged) throws IOException {
        Path jar = shared.resolve(damaged ? "damaged.jar" : "natives.jar");
        if (Files.exists(jar)) {
            return jar;
        }
        TreeMap<String, Path> files = new TreeMap<>();
        files.put(System.mapLibraryName("kvmerge"), TestModel.nativeLibrary());
        try (Stream<Path> llama = Files.list(TestModel.llamaFolder())) {
            llama.filter(f ->
                            f.getFileName().toString().matches("lib(ggml|llama)(-base|-cpu-x64|-cpu-armv8.0_1)?[.].*"))
                    .forEach(f -> files.put("" + f.getFileName(), f));
        }
        StringBuilder list = new StringBuilder();
        String inside = "META-INF/kvmerge/" + Natives.platform() + "/";
        try (OutputStream file = Files.newOutputStream(jar);
                JarOutputStream out = new JarOutputStream(file)) {
            out.setLevel(0);
            for (String name : files.keySet()) {
                byte[] bytes = Files.readAllBytes(files.get(name));
                list.append(Hash.sha256(bytes)).append(' ').append(bytes.length).append(' ');
                list.append(name).append('\n');
                bytes[bytes.length / 2] ^= (byte) (damaged ? 1 : 0);
                out.putNextEntry(new JarEntry(inside + name));
                out.write(bytes);
            }
            out.putNextEntry(new JarEntry(inside + "files.txt"));
            out.write(list.toString().getBytes());
        }
        return jar;
    }

    private Process start(List<String> options, String... steps) throws IOException {
        ProcessBuilder builder = new ProcessBuilder(Child.command(options, LoadOrderMain.class, steps))
                .directory(folder.toFile())
                .redirectErrorStream(true);
        builder.environment().put("XDG_CACHE_HOME", cache().toString());
        builder.environment().remove(Natives.FOLDER_ENVIRONMENT);
        builder.environment().remove(NativeLibrary.FILE_ENVIRONMENT);
        return builder.start();
    }

    private static List<String> lines(Process process) throws IOException, InterruptedException {
        List<String> lines =
                new String(process.getInputStream().readAllBytes()).lines().toList();
        assertEquals(0, process.waitFor(), "" + lines);
        return lines;
    }

    private static String with(Path jar) {
        return "-Xbootclasspath/a:" + jar; // Child gives the class path itself
    }

    private List<Path> unpacked() throws IOException {
        try (Stream<Path> folders = Files.list(cache().resolve("kvmerge"))) {
            return folders.toList();
        }
    }

    @Test
    void nobodyNamesALibraryOrAnOrder() throws Exception {
        String jar = with(jar(false));
        Geometry tiny = new Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        String model = "model=" + TinyGguf.write(folder.resolve("tiny.gguf"), tiny);
        for (List<String> steps : List.of(
                List.of("score", "llama", model), List.of("llama", "observer", model), List.of("llama", "version"))) {
            List<String> expected =
                    steps.stream().map(s -> "ok " + s.replaceFirst("=.*", "")).toList();
            assertEquals(expected, lines(start(List.of(jar), steps.toArray(String[]::new))));
        }
        assertEquals(1, unpacked().size());
    }

    @Test
    void severalStartAtOnce() throws Exception {
        String jar = with(jar(false));
        List<Process> all = new ArrayList<>();
        for (int i = 0; i < 4; i++) {
            all.add(start(List.of(jar), "llama", "version"));
        }
        for (Process one : all) {
            assertEquals(List.of("ok llama", "ok version"), lines(one));
        }
        assertEquals(1, unpacked().size(), "" + unpacked());
    }

    @Test
    void aFileThatWasCutOrDeletedIsWrittenAgain() throws Exception {
        String jar = with(jar(false));
        lines(start(List.of(jar), "version"));
        Path place = unpacked().getFirst();
        for (String name : List.of(System.mapLibraryName("kvmerge"), "files.txt", "libggml-base.so")) {
            Path file = place.resolve(name);
            byte[] whole = Files.readAllBytes(file);
            Files.write(file, Arrays.copyOf(whole, whole.length / 3));
            assertEquals(List.of("ok version", "ok llama"), lines(start(List.of(jar), "version", "llama")));
            assertEquals(Hash.sha256(whole), Hash.sha256(file));
            Files.delete(file);
            assertEquals(List.of("ok llama"), lines(start(List.of(jar), "llama")));
            assertEquals(Hash.sha256(whole), Hash.sha256(file));
        }
        assertEquals(List.of(place), unpacked());
    }

    @Test
    void aDamagedJarIsRefusedAndLeavesNothing() throws Exception {
        String message = lines(start(List.of(with(jar(true))), "llama")).getFirst();
        assertTrue(message.startsWith("refused llama: META-INF/kvmerge/"), message);
        assertTrue(message.contains("is not what its list says"), message);
        assertEquals(List.of(), unpacked());
    }

    @Test
    void aCacheFolderThatCannotBeIsNamedWithTheRemedy() throws Exception {
        Files.writeString(cache(), "a file where the folder should be");
        String message = lines(start(List.of(with(jar(false))), "llama")).getFirst();
        assertTrue(message.startsWith("refused llama: cannot unpack the native libraries to " + cache()), message);
        assertTrue(message.contains("-Dkvmerge.native.dir=FOLDER or KVMERGE_NATIVE_DIR=FOLDER"), message);
    }

    @Test
    void aFolderThatIsNamedIsUsedAndNothingUnpacked() throws Exception {
        Path own = Files.createDirectory(folder.resolve("own"));
        Files.copy(TestModel.nativeLibrary(), own.resolve(System.mapLibraryName("kvmerge")));
        try (Stream<Path> llama = Files.list(TestModel.llamaFolder())) {
            for (Path file : llama.toList()) {
                Files.copy(file, own.resolve(file.getFileName()));
            }
        }
        List<String> options = List.of(with(jar(false)), "-Dkvmerge.native.dir=" + own);
        assertEquals(List.of("ok llama", "ok version"), lines(start(options, "llama", "version")));
        assertFalse(Files.exists(cache()));
        Path empty = Files.createDirectory(folder.resolve("empty"));
        String message =
                lines(start(List.of("-Dkvmerge.native.dir=" + empty), "llama")).getFirst();
        assertTrue(message.startsWith("refused llama: no libggml-base library in " + empty), message);
    }

    @Test
    void withoutAnyTheMessageSaysWhatToDo() throws Exception {
        List<String> lines = lines(start(List.of(), "llama", "version"));
        assertTrue(lines.getFirst().startsWith("refused llama: no native libraries for " + Natives.platform()));
        for (String line : lines) {
            assertTrue(line.contains("dev.kvmerge:kvmerge-natives with the classifier " + Natives.platform()), line);
            assertTrue(line.contains("-Dkvmerge.native.dir=FOLDER"), line);
        }
    }
}
