package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.Child;
import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What is left of the heap for a context's tables, in a JVM with a heap of 256 MiB. */
@Tag("fast")
class HeapTest {
    private static final long MIB = 1 << 20;

    @TempDir
    Path folder;

    /** Garbage is not taken for what is in use. */
    @Test
    void tablesFitWhereClosedContextsLeftTheirs() throws IOException, InterruptedException {
        Child.Result child = Child.run(folder, List.of(), Filled.class);
        assertEquals(0, child.code(), child.output());
        assertTrue(child.output().contains("fits\n"), child.output());
        assertTrue(child.output().contains("the tables of 7 cells take 400 MiB of the JVM's heap"), child.output());
    }

    /** Leaves 150 MiB of garbage, and asks for 180 and for 400. */
    static final class Filled {
        private Filled() {}

        public static void main(String[] args) {
            byte[][] closed = new byte[150][(int) MIB];
            closed[0][0] = 1;
            closed = null;
            CacheChecks.checkHeap(7, 180 * MIB);
            System.out.println("fits");
            try {
                CacheChecks.checkHeap(7, 400 * MIB);
            } catch (KvmergeException e) {
                System.out.println(e.getMessage());
            }
        }
    }
}
