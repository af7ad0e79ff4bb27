package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.charset.Charset;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

@Tag("fast")
class TextTest {
    private static final String STORY =
            "Alice was beginning to get very tired.\nOf sitting by her sister on the bank.\n";

    @TempDir
    Path folder;

    private KvmergeException refused(byte[] bytes) throws IOException {
        Path file = Files.write(folder.resolve("text.txt"), bytes);
        KvmergeException e = assertThrows(KvmergeException.class, () -> Text.read(file));
        assertTrue(e.getMessage().contains("text.txt"), e.getMessage());
        return e;
    }

    @ParameterizedTest
    @CsvSource({
        "UTF-16, UTF-16", "UTF-16LE, UTF-16LE", "UTF-16BE, UTF-16BE",
        "x-UTF-16LE-BOM, UTF-16", "UTF-32, UTF-32BE", "UTF-32LE, UTF-32LE",
        "X-UTF-32LE-BOM, UTF-32", "X-UTF-32BE-BOM, UTF-32"
    })
    void anotherUnicodeIsNamed(String written, String advised) throws IOException {
        String message = refused(STORY.getBytes(Charset.forName(written))).getMessage();
        assertTrue(message.contains("'iconv -f " + advised + " -t UTF-8'"), message);
    }

    @Test
    void whatIsNoText() throws IOException {
        assertTrue(refused("caf\u00e9 au lait".getBytes(Charset.forName("ISO-8859-1")))
                .getMessage()
                .contains("(byte 3): convert it, for instance with 'iconv -f ISO-8859-1"));
        assertTrue(refused((STORY + "\0" + STORY).getBytes())
                .getMessage()
                .contains("a zero byte (byte " + STORY.length() + ")"));
    }

    @Test
    void oneNewlineAtTheEndIsLeftOut() throws IOException {
        Path file = Files.writeString(folder.resolve("text.txt"), "caf\u00e9\n\n");
        assertEquals("caf\u00e9\n", Text.read(file).content());
    }
}
