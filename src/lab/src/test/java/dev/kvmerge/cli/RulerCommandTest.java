package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** kvmerge ruler, with the real model and short texts. */
@Tag("model")
class RulerCommandTest {
    @TempDir
    Path folder;

    private Cli ruler(String... more) {
        List<String> args = new ArrayList<>(List.of(
                "ruler",
                "--tokens",
                "900",
                "--texts",
                "1",
                "--block",
                "64",
                "--compression",
                "0.5",
                "--strategies",
                "h2o",
                "--out",
                out().toString()));
        args.addAll(List.of(more));
        return Cli.run(args.toArray(String[]::new));
    }

    private Path out() {
        return folder.resolve("out");
    }

    private JsonNode readings() throws IOException {
        return new ObjectMapper().readTree(out().resolve("ruler.json").toFile()).get("readings");
    }

    @Test
    void everyCacheIsAskedOfEveryText() throws IOException {
        String tasks = "niah_multikey_1,niah_multivalue";
        Cli first = ruler("--tasks", tasks).succeeded();
        assertEquals(2, readings().size(), "the text, in the full cache and in the other");
        JsonNode needles = readings().get(0);
        assertEquals("full", needles.get("cache").asText());
        assertEquals(5, needles.get("answers").size(), "four keys and the values of a fifth");
        for (JsonNode reading : readings()) {
            int read = reading.get("read").asInt();
            assertTrue(read < 880 && read > 600, "the question and the answer have room, too: " + reading);
            boolean full = reading.get("compression").asDouble() == 0;
            assertEquals(
                    full ? read : Math.round(read / 2.0), reading.get("cells").asInt());
        }
        assertTrue(first.out().contains("h2o") && first.out().contains("niah_multivalue"), first.out());

        ruler("--tasks", tasks).failed(2, "results in", "--resume");
        ruler("--tasks", "niah_multivalue", "--resume").failed(2, "version or settings", "another --out");
        String before = Files.readString(out().resolve("ruler.json"));
        Cli again = ruler("--tasks", tasks, "--resume").succeeded();
        assertEquals(first.out(), again.out(), "nothing was asked again");
        assertEquals(before, Files.readString(out().resolve("ruler.json")));

        Files.writeString(out().resolve("ruler.json"), before.replaceFirst("\"found\" : \\d", "\"found\" : 9"));
        ruler("--tasks", tasks, "--resume").failed(1, "ruler.json are broken", "--overwrite");

        // A question is asked of what the text left, whatever was asked before it.
        Files.writeString(out().resolve("ruler.json"), before);
        List<String> together = said("niah_multivalue");
        ruler("--tasks", "niah_multivalue", "--overwrite").succeeded();
        assertEquals(2, together.size());
        assertEquals(together, said("niah_multivalue"));
    }

    /** Another setting of a strategy is another cache; the full one has none, and is not asked again. */
    @Test
    void readingsOfOtherSettingsAreNotTakenOver() throws IOException {
        String args = "ruler --tasks niah_multikey_2 --tokens 512 --texts 1 --block 64 --strategies entropy-merged"
                + " --compression 0.5 -t 1 --resume --out " + out();
        List<String> merged = List.of(args.split(" "));
        Cli.run(with(merged)).succeeded();
        JsonNode first = readings();
        assertEquals(2, first.size());
        String parameters = first.get(1).get("parameters").asText();
        assertTrue(parameters.contains("recentShare=0.25"), parameters);
        Cli other = Cli.run(with(merged, "--recent-share", "0.5")).succeeded();
        JsonNode all = readings();
        assertEquals(3, all.size());
        assertEquals(first.get(0), all.get(0));
        assertEquals(first.get(1), all.get(1), "what was there stays");
        assertEquals(
                parameters.replace("recentShare=0.25", "recentShare=0.5"),
                all.get(2).get("parameters").asText());
        assertFalse(other.err().contains("full: "), other.err());

        Path json = out().resolve("ruler.json");
        Files.writeString(
                json, Files.readString(json).replace("\"parameters\"", "\"unknown\"")); // as before it had them
        Cli.run(with(merged)).failed(1, "parameters is missing", "--overwrite");
    }

    private List<String> said(String task) throws IOException {
        List<String> said = new ArrayList<>();
        for (JsonNode reading : readings()) {
            for (JsonNode answer : reading.get("answers")) {
                if (answer.get("task").asText().equals(task)) {
                    said.add(reading.get("cache").asText()
                            + answer.get("expected")
                            + answer.get("said").asText());
                }
            }
        }
        return said;
    }

    /** Compressed once, with the questions known; more texts are added to those that are there. */
    @Test
    void wholeTextsWithKnownQuestions() throws IOException {
        List<String> args = new ArrayList<>(List.of(
                "ruler", "--tasks", "niah_multikey_2", "--tokens", "512", "--strategies", "h2o,h2o", "--compression"));
        args.addAll(List.of("0.5", "--whole", "--known", "--out", out().toString(), "--texts"));
        Cli.run(with(args, "1")).succeeded();
        JsonNode first = readings();
        assertEquals(2, first.size());
        int found = 0;
        for (JsonNode answer : first.get(0).get("answers")) { // nothing but keys and numbers
            found += answer.get("found").asInt();
        }
        assertTrue(found > 0, "the full cache answers something: " + first.get(0));
        assertEquals(
                Math.round(first.get(1).get("read").asInt() / 2.0),
                first.get(1).get("cells").asInt());
        Cli two = Cli.run(with(args, "2", "--resume")).succeeded();
        assertEquals(4, readings().size());
        assertEquals(first.get(0), readings().get(0), "is not asked again");
        assertTrue(two.out().contains("questions known, compressed once"), two.out());
    }

    /** The report has the table, and its command asks the same again. */
    @Test
    void theReportShowsItAndAsksItAgain() throws IOException {
        String args = "ruler --tokens 512 --texts 1 --tasks niah_multikey_2 --block 64 --strategies entropy-merged"
                + " --compression 0.5 --signal row --sinks 2 -t 1 --out " + out();
        Cli.run(args.split(" ")).succeeded();
        Cli.run("report", folder.toString()).succeeded();
        String page = Files.readString(folder.resolve("report.md"));
        assertTrue(page.contains("| 512 | 50 % | entropy-merged-row |"), page);
        String command = shownCommand(page);
        assertTrue(command.contains(" --sinks 2"), command);
        JsonNode before = readings();
        String again = command + " --overwrite --out " + out();
        Cli.run(again.split(" ")).succeeded();
        assertEquals(without(before), without(readings()), command);
    }

    /** The report of a call that was stopped has a command that is taken. */
    @Test
    void aStoppedCallsCommandIsTaken() throws IOException {
        String args = "ruler --tokens 512 --texts 1 --tasks niah_multikey_2 --block 64 --strategies"
                + " streaming-llm,entropy-merged --recent-share 0.5 --sinks 2 --compression 0.5 -t 1 --out " + out();
        Cli.run(args.split(" ")).succeeded();
        Path json = out().resolve("ruler.json");
        ObjectNode stopped = (ObjectNode) new ObjectMapper().readTree(json.toFile());
        ((ArrayNode) stopped.get("readings")).remove(2);
        Files.writeString(json, stopped.toString());
        Cli.run("report", folder.toString()).succeeded();
        String command = shownCommand(Files.readString(folder.resolve("report.md")));
        Cli.run((command + " --overwrite --out " + out()).split(" ")).succeeded();
        assertEquals(without(stopped.get("readings")), without(readings()), command);
    }

    private static String shownCommand(String page) {
        return page.lines()
                .filter(line -> line.startsWith("    bin/kvmerge ruler "))
                .findFirst()
                .orElseThrow()
                .strip()
                .substring("bin/kvmerge ".length());
    }

    /** Readings but for the time they took. */
    private static String without(JsonNode readings) {
        return readings.toString().replaceAll("\"seconds\":[^,]+,", "");
    }

    private static String[] with(List<String> args, String... more) {
        return Stream.concat(args.stream(), Stream.of(more)).toArray(String[]::new);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "--tasks nonsense; there is no task 'nonsense'",
                "--tokens 100; --tokens",
                "--tokens 100000000 --block 128; --tokens can be 1048576 at most",
                "--tokens 9000; trained on 8192 positions",
                "--texts 0; --texts",
                "--texts 1001; --texts can be 1000 at most",
                "--block 16; --block",
                "--block 5000 --tokens 4096; nothing would be compressed",
                "--whole --block 64; --block goes without --whole",
                "--compression 1.5; --compression",
                "--compression 0.5 --strategies full; goes with a strategy other than full",
                "--strategies nonsense; nonsense",
                "--resume --overwrite; exclude each other"
            })
    void whatCannotBeAsked(String args, String why) {
        Cli.run(("ruler " + args.strip() + " --out " + out()).split(" ")).failed(2, why.strip());
    }
}
