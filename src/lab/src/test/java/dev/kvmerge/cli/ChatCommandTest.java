package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.kvmerge.TestModel;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Generating and chatting on the command line. */
@Tag("model")
class ChatCommandTest {
    @TempDir
    Path folder;

    private record Ended(int code, String out, String err) {}

    /** The command line in a JVM of its own, with a text as its standard input. */
    private Ended run(String input, String... args) throws IOException, InterruptedException {
        Path in = Files.writeString(folder.resolve("in"), input);
        Path out = folder.resolve("out");
        Path err = folder.resolve("err");
        Process process = new ProcessBuilder(command(args))
                .redirectInput(in.toFile())
                .redirectOutput(out.toFile())
                .redirectError(err.toFile())
                .start();
        assertTrue(process.waitFor(5, TimeUnit.MINUTES), "it does not end");
        return new Ended(process.exitValue(), Files.readString(out), Files.readString(err));
    }

    private static List<String> command(String... args) {
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin/java").toString(),
                "-XX:+UseSerialGC",
                "--enable-native-access=ALL-UNNAMED",
                "--illegal-native-access=deny",
                "-Dkvmerge.home=" + TestModel.HOME,
                "-Dstdout.encoding=UTF-8",
                "-cp",
                System.getProperty("java.class.path"),
                "dev.kvmerge.cli.Main"));
        command.addAll(List.of(args));
        return command;
    }

    private static String[] greedy(String name, String... more) {
        return Stream.concat(Stream.of(name, "-t", "1", "--temp", "0"), Arrays.stream(more))
                .toArray(String[]::new);
    }

    @Test
    void aTextGoesOnAfterItsPrompt() throws Exception {
        Ended first = run("", greedy("generate", "-p", "Once upon\\ta time,", "-n", "12"));
        assertEquals(0, first.code, first.err);
        assertTrue(first.out.startsWith("Once upon\ta time,") && first.out.length() > 30, first.out);
        assertTrue(first.err.contains("made 12 at"), first.err);
        assertFalse(first.err.contains("WARNING") || first.err.contains("SLF4J"), first.err);
        Path prompt = Files.writeString(folder.resolve("prompt.txt"), "Once upon\ta time,");
        Ended again = run("", greedy("generate", "-f", prompt.toString(), "-n", "12", "--no-display-prompt"));
        assertEquals(first.out, "Once upon\ta time," + again.out, "the same bits, and no prompt");
        Ended raw = run("", greedy("generate", "-p", "a\\tb", "--no-escape", "-n", "1"));
        assertTrue(raw.out.startsWith("a\\tb"), raw.out);
    }

    @Test
    void aTextIsLongerThanItsCells() throws Exception {
        String book = Files.readString(TestModel.downloads().resolve("texts/alice.txt"))
                .substring(0, 4000);
        Path prompt = Files.writeString(folder.resolve("prompt.txt"), book);
        Ended made = run(
                "",
                greedy(
                        "generate",
                        "-f",
                        prompt.toString(),
                        "-n",
                        "40",
                        "-c",
                        "256",
                        "--block",
                        "64",
                        "--prompt-block",
                        "192",
                        "--strategy",
                        "h2o"));
        assertEquals(0, made.code, made.err);
        assertTrue(made.out.startsWith(book) && made.out.length() > book.length() + 40, made.out);
        int used = Integer.parseInt(made.err.replaceFirst("(?s).*; (\\d+) of 512 cells in use.*", "$1"));
        assertTrue(used >= 256 && used < 256 + 64, made.err);
        Ended filled = run(
                "",
                greedy(
                        "generate",
                        "-f",
                        prompt.toString(),
                        "-n",
                        "1",
                        "-c",
                        "256",
                        "--block",
                        "64",
                        "--strategy",
                        "h2o",
                        "--fill"));
        used = Integer.parseInt(filled.err.replaceFirst("(?s).*; (\\d+) of 512 cells in use.*", "$1"));
        assertTrue(used >= 512 - 64, "what the padding leaves holds text: " + filled.err);
    }

    @Test
    void aReversePromptEndsTheText() throws Exception {
        Ended made = run("", greedy("generate", "-p", "1, 2, 3, 4,", "-n", "40", "-r", "9"));
        assertEquals("1, 2, 3, 4, 5, 6, 7, 8, \n", made.out, made.err);
    }

    @Test
    void eachLineIsAMessage() throws Exception {
        Ended made = run("What is 2+2?\n\nAnd 3+3?\n/cells\n/exit\nnever\n", greedy("chat", "-n", "12"));
        assertEquals(0, made.code, made.err);
        assertTrue(made.out.lines().count() >= 4, made.out);
        assertTrue(made.out.contains("tokens read,") && made.out.contains("cells in use"), made.out);
        assertFalse(made.err.contains("WARNING") || made.err.contains("SLF4J"), made.err);
        Ended single = run("What is 2+2?\nAnd 3+3?\n", greedy("chat", "-n", "12", "-st"));
        assertTrue(made.out.startsWith(single.out), "the first answer alone: " + single.out);
        Ended prompted = run("", greedy("chat", "-n", "12", "-p", "What is 2+2?"));
        assertEquals(single.out, prompted.out);
    }

    @Test
    void aConversationIsSavedAndGoesOn() throws Exception {
        Path file = folder.resolve("chat.kv");
        Ended whole = run(
                "My name is Ada.\n/save " + file + "\nWhat is my name?\n",
                greedy("chat", "-n", "12", "-sys", "You are brief."));
        assertEquals(0, whole.code, whole.err);
        Ended loaded = run("/load " + file + "\nWhat is my name?\n", greedy("chat", "-n", "12"));
        assertEquals(0, loaded.code, loaded.err);
        assertTrue(loaded.out.contains("Going on with " + file + ": 3 messages"), loaded.out);
        assertEquals(
                whole.out.lines().toList().getLast(),
                loaded.out.lines().toList().getLast());
        Ended wrong = run("/load " + folder.resolve("none.kv") + "\n", greedy("chat"));
        assertEquals(1, wrong.code, wrong.err);
        assertTrue(wrong.err.contains("none.kv"), wrong.err);
        Ended nameless = run("/load ~/no\0name.kv\n", greedy("chat"));
        assertEquals(2, nameless.code, nameless.err);
        assertTrue(nameless.err.contains("no file can have such a name"), nameless.err);
        Ended home = run("/load ~/none.kv\n", greedy("chat"));
        Path none = Path.of(System.getProperty("user.home"), "none.kv");
        assertTrue(home.err.contains("there is no saved session " + none), home.err);
    }

    @Test
    void aNewConversationKeepsTheSystemPrompt() throws Exception {
        Ended made = run(
                "What is 2+2?\n/clear\nWhat is 2+2?\n/system Answer in French.\nWhat is 2+2?\n",
                greedy("chat", "-n", "12", "-sys", "You are brief."));
        assertEquals(0, made.code, made.err);
        List<String> lines = made.out.lines().toList();
        int cleared = lines.indexOf("A new conversation.");
        assertEquals(lines.subList(0, cleared), lines.subList(cleared + 1, 2 * cleared + 1), made.out);
        assertTrue(lines.contains("A new conversation, with this system prompt."), made.out);
    }

    @Test
    void aTemplateThatRefusesSaysSo() throws Exception {
        Path gemma = TestModel.HOME.resolve("src/chat/src/test/resources/templates/gemma2.jinja");
        Ended made = run("Hi\n", greedy("chat", "-sys", "Be brief.", "--chat-template-file", gemma.toString()));
        assertEquals(1, made.code, made.out + made.err);
        assertTrue(made.err.contains("refuses the conversation: System role not supported"), made.err);
        assertFalse(made.err.contains("defect"), made.err);
    }

    @Test
    void whatCannotBeIsRefused() throws Exception {
        for (String[] wrong : new String[][] {
            {"generate", "nothing to go on after"},
            {"generate -p a -f b", "give one of -p and -f"},
            {"generate -f nosuch.txt", "-f nosuch.txt cannot be read"},
            {"generate -p a -n -2", "-n must be -1 and more"},
            {"generate -p a --temp -1", "--temp"},
            {"generate -p a --top-p 2", "--top-p"},
            {"generate -p a -l 12", "--logit-bias is a token's number"},
            {"generate -p a -l x+1", "--logit-bias is a token's number"},
            {"generate -p a --grammar x --grammar-file y", "give one of them"},
            {"generate -p a --grammar-file nosuch.gbnf", "--grammar-file nosuch.gbnf cannot be read"},
            {"generate -p a -c 0", "cells"},
            {"generate -p a --strategy nosuch", "nosuch"},
            {"chat -sys a -sysf b", "give one of -sys and -sysf"},
            {"chat -p a -f b", "give one of -p and -f"},
            {"chat --chat-template-file nosuch.jinja", "--chat-template-file nosuch.jinja cannot be read"},
        }) {
            Cli.run(wrong[0].split(" ")).failed(2, wrong[1]);
        }
        Ended unknown = run("/nosuch\n", greedy("chat"));
        assertEquals(2, unknown.code, unknown.err);
        assertTrue(unknown.err.contains("there is no command /nosuch: /help lists them"), unknown.err);
        Ended grammar = run("", greedy("generate", "-p", "a", "--grammar", "root ::= ("));
        assertEquals(2, grammar.code, grammar.err);
        assertFalse(grammar.err.contains("defect"), grammar.err);
    }

    /** At a terminal: Ctrl-C ends the answer and not the chat, Ctrl-D the chat. */
    @Test
    void atATerminalCtrlCStopsTheAnswerAlone() throws Exception {
        Process python = new ProcessBuilder("sh", "-c", "command -v python3").start();
        assumeTrue(python.waitFor() == 0, "python3 makes the pseudo-terminal, and is not here");
        List<String> command = new ArrayList<>(List.of(
                "python3",
                TestModel.HOME.resolve("src/lab/src/test/python/terminal.py").toString()));
        command.addAll(command(greedy("chat", "--ignore-eos")));
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String said = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertEquals(0, process.waitFor(), said);
    }
}
