package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.Model;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The oracle's record of a full run. */
@Tag("native")
class AttentionRecordTest {
    @TempDir
    Path folder;

    /** A mapped file takes its space when it is written to, and then it is too late for an error. */
    @Test
    void aFullDiskIsNoticedBeforeTheRun() throws IOException {
        Geometry tiny = new Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        Path file = Files.createSymbolicLink(folder.resolve("record"), Path.of("/dev/full"));
        try (Model model =
                Model.load(TestModel.library(), TinyGguf.write(folder.resolve("tiny.gguf"), tiny), Backend.CPU, 0)) {
            String message = assertThrows(
                            KvmergeException.class,
                            () -> new AttentionRecord(
                                    model,
                                    new int[64],
                                    CacheOptions.unlimited(64, 16),
                                    file,
                                    (done, perplexity, speed) -> {},
                                    () -> false))
                    .getMessage();
            assertTrue(message.contains("(2560 bytes)") && message.contains("free space there"), message);
            assertFalse(Files.exists(file, LinkOption.NOFOLLOW_LINKS), "nothing is left");
        }
    }
}
