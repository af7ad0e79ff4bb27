package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvmerge.eval.Experiment;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What ruler and facts make of the results that a folder has. */
@Tag("fast")
class KeptResultsTest {
    private final List<List<String>> written = new ArrayList<>();
    private final KeptResults<Character, String> kept =
            new KeptResults<>(List.of("a1", "b1"), result -> result.charAt(0), written::add);

    @Test
    void whatIsThereIsNotMadeAndWhatIsMadeIsWrittenWithAll() {
        assertEquals("b1", kept.get('b', () -> "b2"));
        assertEquals(List.of(), written);
        assertEquals("d2", kept.get('d', () -> "d2"));
        assertEquals("c2", kept.get('c', () -> "c2"));
        assertEquals("d2", kept.get('d', () -> "d3"), "once");
        assertEquals(List.of(List.of("a1", "b1", "d2"), List.of("a1", "b1", "d2", "c2")), written);
    }

    @Test
    void whatIsStoppedIsNotWritten() {
        assertThrows(
                Experiment.Cancelled.class,
                () -> kept.get('c', () -> {
                    throw new Experiment.Cancelled();
                }));
        assertEquals(List.of(), written);
        assertEquals("c2", kept.get('c', () -> "c2"));
    }
}
