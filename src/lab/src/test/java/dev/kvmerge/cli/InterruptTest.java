package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** However the JVM ends, it does not wait for work that cannot end any more. */
@Tag("fast")
class InterruptTest {
    /** Ends in one of several ways with work that still counts as going on. */
    static final class Ending {
        public static void main(String[] args) throws Exception {
            Interrupt.listen("stopping");
            switch (args[0]) {
                case "exits" -> System.exit(7);
                case "throws" -> throw new IllegalStateException("thrown");
                case "returns" -> {}
                case "exits-elsewhere-while-dead" -> {
                    Thread worker = new Thread(() -> Interrupt.listen("stopping"));
                    worker.start();
                    worker.join();
                    System.exit(7);
                }
                case "waits-for-work" -> {
                    Thread other = new Thread(() -> System.exit(7));
                    other.start();
                    while (!Interrupt.requested()) {
                        Thread.sleep(5);
                    }
                    System.out.println("the work has stopped by itself");
                    Interrupt.finished();
                }
                default -> throw new IllegalArgumentException(args[0]);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"exits,7", "throws,1", "returns,0", "exits-elsewhere-while-dead,7", "waits-for-work,7"})
    void ends(String how, int code) throws IOException, InterruptedException {
        Path log = Files.createTempFile("kvmerge-ending", ".log");
        try {
            Process process = new ProcessBuilder(dev.kvmerge.Child.command(List.of(), Ending.class, how))
                    .redirectErrorStream(true)
                    .redirectOutput(log.toFile())
                    .start();
            assertTrue(process.waitFor(5, TimeUnit.MINUTES));
            String text = Files.readString(log);
            assertEquals(code, process.exitValue(), text);
            assertFalse(text.contains("did not end"), "it waited until its patience was over: " + text);
            assertEquals(how.startsWith("waits"), text.contains("the work has stopped by itself"), text);
        } finally {
            Files.delete(log);
        }
    }
}
