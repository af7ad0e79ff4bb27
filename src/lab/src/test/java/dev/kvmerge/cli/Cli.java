package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** Runs the command line in this process and keeps what it prints. */
record Cli(int code, String out, String err) {
    static Cli run(String... args) {
        PrintStream oldOut = System.out;
        PrintStream oldErr = System.err;
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        ByteArrayOutputStream err = new ByteArrayOutputStream();
        try {
            System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
            System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));
            int code = Main.run(args);
            return new Cli(code, out.toString(StandardCharsets.UTF_8), err.toString(StandardCharsets.UTF_8));
        } finally {
            System.setOut(oldOut);
            System.setErr(oldErr);
        }
    }

    /** It failed with this code and said so in one clear line that has all these words. */
    void failed(int expected, String... words) {
        assertEquals(expected, code, err);
        for (String word : words) {
            assertTrue(err.contains(word), "'" + word + "' is not in: " + err);
        }
        assertFalse(err.contains("\tat "), "a stack trace: " + err);
        assertEquals(1, err.lines().filter(l -> l.startsWith("kvmerge: ")).count(), err);
    }

    Cli succeeded() {
        assertEquals(0, code, err);
        return this;
    }
}
