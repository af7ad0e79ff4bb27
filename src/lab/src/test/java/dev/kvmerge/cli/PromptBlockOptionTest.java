package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvmerge.KvmergeException;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import picocli.CommandLine;

@Tag("fast")
class PromptBlockOptionTest {
    private static PromptBlockOption given(String... args) {
        return CommandLine.populateCommand(new PromptBlockOption(), args);
    }

    @Test
    void whatIsGivenGoesBeforeADefault() {
        assertEquals(128, given().tokens(128));
        assertEquals(512, given().tokens(128, 512));
        assertEquals(600, given().tokens(600, 512), "a block is the least");
        assertEquals(128, given("--prompt-block", "128").tokens(128, 512));
        assertEquals(1024, given("--prompt-block", "1024").tokens(128));
        PromptBlockOption less = given("--prompt-block", "127");
        assertThrows(KvmergeException.Usage.class, () -> less.tokens(128));
    }
}
