package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import java.util.concurrent.FutureTask;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Grammars that llama.cpp would read for ever are refused before it sees them; others are not. */
@Tag("fast")
class GrammarCheckTest {
    private static final String JSON = """
            root   ::= object
            value  ::= object | array | string | number | ("true" | "false" | "null") ws
            object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
            array  ::= "[" ws ( value ("," ws value)* )? "]" ws
            string ::= "\\"" ( [^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\\"" ws # ( so
            number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
            ws ::= | " " | "\\n" [ \\t]{0,20}
            """;
    private static final String LIST =
            "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"";

    @ParameterizedTest
    @ValueSource(
            strings = {JSON, LIST, "root ::= [a-z]{20} \"(((\"", "root ::= \"a\" root | \"b\"", "no grammar ((", ""})
    void usualOnesAreNot(String grammar) {
        assertDoesNotThrow(() -> GrammarCheck.check(grammar));
    }

    private static String chain(String rule) {
        StringBuilder all = new StringBuilder("root ::= a0\ne ::= \"\"\nx ::= \"x\"\n");
        for (int i = 0; i < 40; i++) {
            all.append("a" + i + " ::= " + rule.replace("NEXT", "a" + (i + 1)) + "\n");
        }
        return all + "a40 ::= \"x\"\n";
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "NEXT | NEXT",
                "NEXT \"a\" | NEXT \"b\"",
                "(NEXT) | (NEXT | \"a\")",
                "e NEXT | \"\" NEXT",
                "x? NEXT | [a-z]* NEXT",
                "\"a\"{0,3} NEXT | (\"a\" | e) NEXT",
                "(\"a\" \"b\")? NEXT | (\"a\"){,2} NEXT",
                "NEXT? NEXT",
            })
    void rulesThatBeginWithEachOtherInTooManyWaysAre(String rule) {
        refused(chain(rule), "ways");
    }

    @ParameterizedTest
    @ValueSource(strings = {"\"a\" NEXT | \"b\" NEXT", "[a-z] (NEXT | NEXT)", "NEXT", "\"a\"+ NEXT | x{2} \"b\" NEXT"})
    void rulesThatBeginWithSomethingElseAreNot(String rule) {
        assertDoesNotThrow(() -> GrammarCheck.check(chain(rule)));
    }

    /** In a thread of Java's usual stack: the matcher must not recurse for each character. */
    @ParameterizedTest
    @ValueSource(strings = {"\"abc\"", "\"\\\\n\"", "[abc]", "[\\\\]]", "\"abc", "[abc", "<abc", "{abc", "# abc"})
    void longLiteralsAreRead(String literal) throws Exception {
        int begun = literal.startsWith("\"\\") || literal.startsWith("[\\") ? 3 : 2;
        String middle = literal.substring(1, begun);
        String all = literal.charAt(0) + middle.repeat(30_000 / middle.length()) + literal.substring(begun);
        FutureTask<Boolean> read = new FutureTask<>(() -> GrammarCheck.check("root ::= " + all), true);
        Thread.ofPlatform().start(read);
        assertTrue(read.get());
    }

    private static void refused(String grammar, String why) {
        String message = assertThrows(KvmergeException.Usage.class, () -> GrammarCheck.check(grammar))
                .getMessage();
        assertTrue(message.contains("--grammar") && message.contains(why), message);
    }

    @ParameterizedTest
    @ValueSource(ints = {101, 10_000})
    void deepOnesAre(int n) {
        refused("root ::= " + "(".repeat(n) + "\"a\"" + ")".repeat(n), "parentheses");
    }

    @ParameterizedTest
    @ValueSource(ints = {1 << 16})
    void longOnesAre(int n) {
        refused("root ::= \"" + "a".repeat(n) + "\"", "characters");
    }
}
