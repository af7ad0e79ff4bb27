package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What --resume says of an experiment that is another one, and numbers without a sign of nothing. */
@Tag("fast")
class DifferencesTest {
    private static Report report(String version, String sha, String text, int block) {
        return new Report(
                new Report.Versions(version, "v0.5.0", "25"),
                null,
                new Report.ModelInfo("m.gguf", sha, "llama", "tiny", 2, 4, 2, 16, "F32"),
                new Report.TextInfo(text, "abc", 0),
                new Report.Settings(512, "stream", block, 1, "off", "f16", "f16", null),
                null,
                List.of());
    }

    @Test
    void eachDifferenceIsNamedWithBothValues() {
        Report before = report("0.1.0", "1", "alice.txt", 128);
        assertEquals(List.of(), before.differences(report("0.1.0", "1", "alice.txt", 128)));
        assertEquals(
                List.of(
                        "model m.gguf is now m.gguf with other content",
                        "text name alice.txt is now moby.txt",
                        "block 128 is now 64",
                        "version of kvmerge 0.1.0 is now 0.2.0"),
                before.differences(report("0.2.0", "2", "moby.txt", 64)));
    }

    @Test
    void whatIsRoundedToZeroHasNoSign() {
        assertEquals("0.0000", Table.number("%.4f", -0.00001));
        assertEquals("0.0000", Table.number("%+.4f", -0.00001));
        assertEquals("-0.0001", Table.number("%.4f", -0.0001));
        assertEquals("+0.0100", Table.number("%+.4f", 0.01));
        assertEquals("-", Table.number("%.4f", null));
    }
}
