package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.Child;
import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** One run at a time holds a folder, in this process and in others; nothing half written stays. */
@Tag("fast")
class ResultsFolderTest {
    @TempDir
    Path folder;

    /** Opens and closes a folder again and again, and tells when another had it too. */
    static final class Contender {
        public static void main(String[] args) throws Exception {
            Path folder = Path.of(args[0]);
            Path alone = folder.resolve("alone");
            int held = 0;
            for (int tries = 0; held < Integer.parseInt(args[1]) && tries < Integer.parseInt(args[2]); tries++) {
                try (ResultsFolder open = ResultsFolder.open(folder)) {
                    Files.createFile(alone); // throws if it is there: someone else is in
                    open.write("file", "content");
                    held++;
                    Files.delete(alone);
                } catch (KvmergeException e) {
                    Thread.onSpinWait();
                    Thread.sleep(0, 200_000);
                }
            }
            System.out.println("held " + held);
        }
    }

    private static Process child(Class<?> main, String... args) throws IOException {
        return new ProcessBuilder(Child.command(List.of(), main, args))
                .redirectErrorStream(true)
                .start();
    }

    private static String text(Process process) throws IOException {
        return new String(process.getInputStream().readAllBytes());
    }

    @Test
    @Tag("slow")
    void neverTwoProcessesAtOnce() throws IOException, InterruptedException {
        List<Process> children = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            children.add(child(Contender.class, folder.toString(), "100", "1000000"));
        }
        for (Process each : children) {
            String text = text(each);
            assertEquals(0, each.waitFor(), text);
            assertEquals("held 100", text.strip());
        }
    }

    /** Holds a folder until it is killed. */
    static final class Holder {
        public static void main(String[] args) throws Exception {
            try (ResultsFolder open = ResultsFolder.open(Path.of(args[0]))) {
                Files.writeString(open.path().resolve(".results.json.part"), "half");
                System.out.println("held");
                Thread.sleep(Long.MAX_VALUE);
            }
        }
    }

    @Test
    void aKilledProcessHoldsNothingAndLeavesNothingHalf() throws IOException, InterruptedException {
        Process holder = child(Holder.class, folder.toString());
        assertEquals("held", holder.inputReader().readLine());
        KvmergeException refused = assertThrows(KvmergeException.class, () -> ResultsFolder.open(folder));
        assertTrue(refused.getMessage().contains("another run is writing"), refused.getMessage());
        assertTrue(Files.exists(folder.resolve(".results.json.part")), "what the other is writing stays");
        holder.destroyForcibly().waitFor();
        ResultsFolder.open(folder).close();
        assertFalse(Files.exists(folder.resolve(".results.json.part")));
    }

    @Test
    void neverTwiceInOneProcessUnderWhateverName() throws IOException, InterruptedException {
        Path real = Files.createDirectory(folder.resolve("real"));
        Path link = Files.createSymbolicLink(folder.resolve("link"), real);
        try (ResultsFolder held = ResultsFolder.open(real)) {
            assertThrows(KvmergeException.class, () -> ResultsFolder.open(link));
            assertThrows(KvmergeException.class, () -> ResultsFolder.open(real.resolve("../real")));
            String other = text(child(Contender.class, held.path().toString(), "1", "10"));
            assertEquals("held 0", other.strip(), "the refused attempts have not given up this process's lock");
        }
        ResultsFolder.open(link).close();
    }

    @Test
    void anOldExperimentGoesWholeAndOtherFilesStay() throws IOException {
        Files.createDirectories(folder.resolve("traces"));
        List<String> mine = List.of("mine.svg", "notes.txt", "traces/notes.txt");
        List<String> old = List.of("results.json", "results.csv", "kl.svg", "report.html", "traces/h2o-70.csv");
        for (String name : Stream.concat(mine.stream(), old.stream()).toList()) {
            Files.writeString(folder.resolve(name), "x");
        }
        try (ResultsFolder results = ResultsFolder.open(folder)) {
            results.clear();
            Files.writeString(folder.resolve("kl.svg"), "no experiment's");
            results.clear();
        }
        assertTrue(mine.stream().allMatch(name -> Files.exists(folder.resolve(name))));
        assertTrue(Files.exists(folder.resolve("kl.svg")), "without results.json nothing here is an experiment's");
        assertTrue(old.stream().noneMatch(name -> !name.equals("kl.svg") && Files.exists(folder.resolve(name))));
    }

    @Test
    void whatWasOpenedForNothingIsAsItWas() throws IOException {
        Path there = Files.createDirectory(folder.resolve("there"));
        ResultsFolder.open(there.resolve("made/for/it")).close();
        ResultsFolder.open(there).close();
        assertEquals(List.of(), names(there));
        assertTrue(Files.isDirectory(there), "it was there before");
        try (ResultsFolder held = ResultsFolder.open(there.resolve("made/for/it"))) {
            assertThrows(KvmergeException.class, () -> ResultsFolder.open(held.path()));
            assertEquals(List.of(".lock"), names(held.path()), "a refused one takes nothing from who holds it");
            held.write("file", "content");
        }
        assertEquals(List.of("file"), names(there.resolve("made/for/it")));
    }

    private static List<String> names(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            return files.map(f -> f.getFileName().toString()).toList();
        }
    }

    @Test
    void anEmptyNameIsNoFolder() {
        assertTrue(assertThrows(KvmergeException.Usage.class, () -> ResultsFolder.open(Path.of("")))
                .getMessage()
                .contains("--out"));
    }

    @Test
    void whatCannotBeWrittenLeavesNothing() throws IOException {
        try (ResultsFolder open = ResultsFolder.open(folder)) {
            Files.createDirectories(folder.resolve("taken/by-a-folder"));
            KvmergeException e = assertThrows(KvmergeException.class, () -> open.write("taken", "content"));
            assertTrue(e.getMessage().contains("--out"), e.getMessage());
        }
        try (Stream<Path> files = Files.walk(folder)) {
            assertTrue(files.noneMatch(f -> f.toString().endsWith(ResultsFolder.PART)));
        }
    }
}
