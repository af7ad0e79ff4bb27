package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A prompt's escapes are llama-cli's, and what is none stays as it was typed. */
@Tag("fast")
class EscapesTest {
    @ParameterizedTest
    @CsvSource(
            quoteCharacter = '`',
            value = {
                "C:\\dir, C:\\dir",
                "C:\\Users\\0\\s\\u0041, C:\\Users\\0\\s\\u0041",
                "ends with \\, ends with \\",
                "a\\\\nb, a\\nb",
                "\\x41\\xc3\\xA9\\x4, Aé\\x4",
                "\\xg1\\x, \\xg1\\x",
                "\\'\\\", '\"",
                "é\\dé, é\\dé"
            })
    void areReplaced(String text, String expected) {
        assertEquals(expected, Escapes.replaced(text));
    }

    @ParameterizedTest
    @CsvSource({"n,10", "r,13", "t,9"})
    void whiteSpaceIsReplaced(String name, int character) {
        assertEquals("a" + (char) character + "b", Escapes.replaced("a\\" + name + "b"));
    }
}
