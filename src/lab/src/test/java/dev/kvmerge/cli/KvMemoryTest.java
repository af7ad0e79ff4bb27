package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What --kv-mib says of the memory beside the cells. */
@Tag("native")
class KvMemoryTest {
    private static final double MIB = 1 << 20;
    private static final Pattern TEXT = Pattern.compile(
            "--kv-mib 2: ([\\d,]+) cells in \\S+ and a block of 2048, .* tables take ([\\d.]+) MiB beside");
    private static final int LAYERS = 2;
    private static final int HEADS = 4;
    private static final int KV_HEADS = 2;
    private static final int DIM = 32;
    private static final int BLOCK = 2048;

    @TempDir
    Path folder;

    private record Said(int cells, double tables) {}

    private Said said(String... arguments) {
        Geometry tiny = new Geometry("llama", HEADS, KV_HEADS, DIM, 10000, "none", DIM, false);
        Path model = TinyGguf.writeWords(folder.resolve("tiny.gguf"), tiny);
        List<String> all = new ArrayList<>(
                List.of("generate", "-m", model.toString(), "-t", "1", "-p", "a", "-n", "1", "--kv-mib"));
        all.addAll(List.of("2", "--prompt-block", "" + BLOCK));
        all.addAll(Arrays.asList(arguments));
        Cli run = Cli.run(all.toArray(String[]::new)).succeeded();
        Matcher text = TEXT.matcher(run.err());
        assertTrue(text.find(), run.err());
        return new Said(Integer.parseInt(text.group(1).replace(",", "")), Double.parseDouble(text.group(2)));
    }

    /** Sessions run with flash attention, whose queries are captured for a prompt's whole block. */
    @Test
    void capturedQueriesAreOfTheTables() {
        Said captured = said();
        Said stopped = said("--observe", "stop");
        Said unobserved = said("--strategy", "streaming-llm");
        int allocated = captured.cells + BLOCK;
        long query = 4L * LAYERS * HEADS * DIM;
        assertEquals((BLOCK * (query + 2L * allocated) - 64 * query) / MIB, captured.tables - stopped.tables, 0.11);
        assertTrue(unobserved.tables <= stopped.tables, unobserved + " " + stopped);
        // An entry's columns now and next, its moves and position, what became of it, and what was observed of it.
        long entry = 64 + 16 + 4 + 8 + 25;
        assertEquals((double) LAYERS * KV_HEADS * allocated * entry / MIB, unobserved.tables, 0.06);
    }
}
