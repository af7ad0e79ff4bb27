package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** How serving ends. */
@Tag("fast")
class ServeCommandTest {
    @Test
    void whatCannotBeClosedIsToldAndLeavesTheRest() {
        List<String> done = new ArrayList<>();
        ByteArrayOutputStream told = new ByteArrayOutputStream();
        ServeCommand.finish(
                new PrintStream(told, true, StandardCharsets.UTF_8),
                () -> done.add("drained"),
                () -> {
                    throw new IllegalStateException("the model is in use");
                },
                () -> done.add("freed"));
        assertEquals(List.of("drained", "freed"), done);
        assertEquals("kvmerge: the model is in use\n", told.toString(StandardCharsets.UTF_8));
    }
}
