package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.engine.EngineOptions;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.strategy.H2o;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Contexts that the machine has not the memory for are refused before it is touched. */
@Tag("native")
class MemoryTest {
    private static final long MIB = 1 << 20;

    private final ComputeSettings usual = ComputeSettings.usual();

    @TempDir
    Path root;

    private void write(String file, String text) throws IOException {
        Path path = root.resolve(file);
        Files.createDirectories(path.getParent());
        Files.writeString(path, text);
    }

    @Test
    void whatIsFreeIsTheLeastThatTheSystemAndTheGroupsLeave() throws IOException {
        assertEquals(Long.MAX_VALUE, FreeMemory.bytes(root), "another system");
        write("proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:   8192 kB\n");
        assertEquals(8 * MIB, FreeMemory.bytes(root));
        write("proc/self/cgroup", "0::/user/session\n");
        write("sys/fs/cgroup/user/session/memory.max", "max\n");
        write("sys/fs/cgroup/user/session/memory.current", "1000\n");
        assertEquals(8 * MIB, FreeMemory.bytes(root), "no limit");
        write("sys/fs/cgroup/user/memory.max", 5 * MIB + "\n");
        write("sys/fs/cgroup/user/memory.current", 4 * MIB + "\n");
        write("sys/fs/cgroup/user/memory.stat", "anon 5\ninactive_file " + 2 * MIB + "\nactive_file " + MIB + "\n");
        assertEquals(4 * MIB, FreeMemory.bytes(root), "of the group around, with what is cached of files");
        write("proc/self/cgroup", "5:cpu,memory:/job\n4:memoryless:/\n0::/\n");
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("sys/fs/cgroup/memory/memory.usage_in_bytes", "5\n");
        write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", 2 * MIB + "\n");
        write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", MIB / 2 + "\n");
        assertEquals(3 * MIB / 2, FreeMemory.bytes(root), "version 1");
        write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", 3 * MIB + "\n");
        assertEquals(0, FreeMemory.bytes(root), "over its limit");
    }

    @Test
    void anEstimateIsTheMemoryOfTheCells() {
        TinyGguf.Geometry tiny = new TinyGguf.Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        try (Model model =
                Model.load(TestModel.library(), TinyGguf.write(root.resolve("tiny.gguf"), tiny), Backend.CPU, 0)) {
            ContextOptions options = ContextOptions.of(1000, 100, usual.withUbatch(64));
            MemoryNeed need = MemoryNeed.of(model, options, 77, 88, false);
            assertEquals(1024 * 2 * 2 * (16 + 16) * 2, need.cells(), "cells, layers, heads, K and V, bytes");
            assertEquals(64 * 1024 * 4 * (4 + 1), need.scores(), "and the mask");
            assertEquals(77, need.tables());
            assertEquals(88, need.queries());
            assertEquals(need.cells() + need.scores() + 77 + 88, need.total());
            MemoryNeed side =
                    MemoryNeed.of(model, new ContextOptions(1024, 1024, 4, usual.withUbatch(64)), 0, 0, false);
            assertEquals(need.cells(), side.cells());
            assertEquals(need.scores() / 4, side.scores(), "a sequence sees its own cells alone");
            ComputeSettings other = usual.withUbatch(64)
                    .withFlashAttention(FlashAttention.ON)
                    .withCellTypes(CellType.Q8_0, CellType.F32);
            MemoryNeed small = MemoryNeed.of(model, ContextOptions.of(1000, 100, other), 0, 0, false);
            assertEquals((long) (1024 * 2 * 2 * 16 * (34 / 32.0 + 4)), small.cells());
            assertEquals(64 * 1024 * 4, small.scores());
            need.check(1000, need.total());
            String message = assertThrows(KvmergeException.class, () -> need.check(1000, MIB / 2))
                    .getMessage();
            assertTrue(message.startsWith("a context of 1000 cells needs 2 MiB (1 of cells, 2 of scores"), message);
            assertTrue(message.contains("1 of captured queries), and 0 MiB are free: use fewer cells"), message);
            assertTrue(message.endsWith("a smaller --prompt-block or --block, or --observe stop"), message);
            message = assertThrows(KvmergeException.class, () -> small.check(1000, 1))
                    .getMessage();
            assertTrue(message.endsWith("-ctk q8_0"), "what takes nothing is no remedy: " + message);
            message = assertThrows(
                            KvmergeException.class,
                            () -> new Context(model, ContextOptions.of(ContextOptions.MOST_CELLS, 512, usual), null))
                    .getMessage();
            assertTrue(message.startsWith("a context of 1073741824 cells needs "), message);
            try (Context context =
                    new Context(model, ContextOptions.of(4, Integer.MAX_VALUE, usual.withThreads(1)), null)) {
                assertEquals(256, context.batch(), "no more than the cells");
            }
        }
    }

    /** What a device holds takes nothing of the host. */
    @Test
    void aModelOnADeviceNeedsTablesAlone() {
        TinyGguf.Geometry tiny = new TinyGguf.Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        Path file = TinyGguf.write(root.resolve("tiny.gguf"), tiny);
        try (Model model = Model.load(TestModel.library(), file, Backend.CUDA, -1)) {
            assertEquals(
                    77,
                    MemoryNeed.of(model, ContextOptions.of(1 << 20, 512, usual), 77, 88, false)
                            .total());
            assertEquals(
                    77 + 88,
                    MemoryNeed.of(model, ContextOptions.of(1 << 20, 512, usual), 77, 88, true)
                            .total(),
                    "queries that the host looks at");
        }
    }

    /** llama.cpp allocates 768 cells for 410 and blocks of 128: all but a block's hold text between blocks. */
    @Test
    void whatThePaddingLeavesHoldsText() {
        CacheOptions options = CacheOptions.of(410, 128).with(usual.withThreads(1));
        assertEquals(768, options.allocated());
        assertEquals(640, options.filled().cells());
        assertEquals(768, options.filled().allocated(), "no more than without");
        assertEquals(
                CacheOptions.of(640, 128).with(usual.withThreads(1)),
                options.filled().filled());
        assertEquals(
                CacheOptions.unlimited(410, 128),
                CacheOptions.unlimited(410, 128).filled());
        assertEquals(
                640,
                EngineOptions.usual().withCells(410).withBlock(128).filled().cells());
        KvmergeException refused = assertThrows(KvmergeException.Usage.class, () -> options.withPositionRange(500)
                .filled());
        assertTrue(refused.getMessage().contains("must hold the 640 cells"), refused.getMessage());
        TinyGguf.Geometry tiny = new TinyGguf.Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        try (Model model = Model.load(
                        TestModel.library(), TinyGguf.write(root.resolve("tiny.gguf"), tiny), Backend.CPU, 0);
                CompressedContext context = new CompressedContext(model, new H2o(0.5), options.filled())) {
            Random random = new Random(1);
            for (int block = 0; block < 8; block++) {
                context.decode(random.ints(128, 0, TinyGguf.VOCABULARY).toArray(), false);
                assertEquals(Math.min(640, 128 * (block + 1)), context.used());
                assertEquals(768, context.info().cells());
            }
        }
    }

    @Test
    void sizesBeyondAnyContextAreRefused() {
        for (Runnable call : new Runnable[] {
            () -> ContextOptions.of(Integer.MAX_VALUE, 1, usual),
            () -> ContextOptions.of(0, 1, usual),
            () -> ContextOptions.of(256, -1, usual),
            () -> new ContextOptions(256, 1, 257, usual),
            () -> usual.withThreads(1025),
            () -> usual.withUbatch(0),
            () -> CacheOptions.of(Integer.MAX_VALUE, 1),
            () -> CacheOptions.of(1, Integer.MAX_VALUE),
            () -> CacheOptions.of(Integer.MAX_VALUE, Integer.MAX_VALUE),
            () -> CacheOptions.unlimited(Integer.MAX_VALUE, 1)
        }) {
            assertThrows(KvmergeException.Usage.class, call::run);
        }
    }
}
