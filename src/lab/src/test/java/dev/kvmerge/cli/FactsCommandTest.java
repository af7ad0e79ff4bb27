package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** kvmerge facts, with the real model and few facts. */
@Tag("model")
class FactsCommandTest {
    @TempDir
    Path folder;

    private Cli facts(String... more) {
        List<String> args = new ArrayList<>(List.of(
                "facts",
                "--facts",
                "2",
                "--tokens",
                "330",
                "--answer",
                "8",
                "--block",
                "96",
                "--cells",
                "160",
                "--out",
                folder.resolve("out").toString()));
        args.addAll(List.of(more));
        return Cli.run(args.toArray(String[]::new));
    }

    private JsonNode runs() throws IOException {
        return new ObjectMapper()
                .readTree(folder.resolve("out/facts.json").toFile())
                .get("runs");
    }

    @Test
    void everyCacheIsAskedEveryFactAndTheRule() throws IOException {
        Cli first = facts("--strategies", "full,streaming-llm").succeeded();
        assertEquals(2, runs().size());
        JsonNode full = runs().get(0);
        assertEquals(2, full.get("answers").size());
        assertEquals(8 * 2, full.get("checks").size(), "eight questions after each fact, since there are so few");
        assertTrue(full.get("tokens").asInt() <= 330
                && full.get("used").asInt() == full.get("tokens").asInt());
        assertEquals(160, runs().get(1).get("used").asInt());
        JsonNode newest = full.get("answers").get(1);
        assertTrue(
                newest.get("nats").asDouble() < Math.log(40) - 0.5,
                "what was told last is known better than a blind guess: " + newest);
        assertTrue(
                first.out().contains("streaming-llm")
                        && first.out().contains("at " + full.get("tokens").asText()),
                first.out());
        assertEquals(
                1 + 2 * (2 + 16),
                Files.readAllLines(folder.resolve("out/facts.csv")).size());

        facts().failed(2, "--resume", "--overwrite");
        facts("--resume", "--seed", "2").failed(2, "version or settings", "another --out");
        String before = Files.readString(folder.resolve("out/facts.json"));
        Cli again = facts("--strategies", "full,streaming-llm", "--resume").succeeded();
        assertEquals(first.out(), again.out(), "nothing was run again");
        assertEquals(before, Files.readString(folder.resolve("out/facts.json")));

        // A run of other parameters, as before a calibration was found, is not taken over.
        String other = before.replaceFirst("(\"parameters\" : \"\\{sinks=)\\d+", "$13");
        assertFalse(other.equals(before), before);
        Files.writeString(folder.resolve("out/facts.json"), other);
        facts("--strategies", "full,streaming-llm", "--resume").succeeded();
        assertEquals(3, runs().size());
        Files.writeString(folder.resolve("out/facts.json"), before);

        facts("--strategies", "context-shift", "--resume").succeeded();
        assertEquals(3, runs().size(), "what was there before stays");
        assertEquals("context-shift", runs().get(2).get("cache").asText());
        assertEquals(256, runs().get(2).get("allocated").asInt());

        Files.writeString(folder.resolve("out/facts.json"), before.replace("\"rank\"", "\"rang\""));
        facts("--resume").failed(1, "facts.json are broken", "--overwrite");
    }

    /** The report has the tables, and its command asks the same again. */
    @Test
    void theReportShowsItAndAsksItAgain() throws IOException {
        facts("--strategies", "full,context-shift,h2o", "--sinks", "2", "-t", "1", "--observe", "capture")
                .failed(2, "--sinks has no effect on full, context-shift, h2o");
        facts("--strategies", "full,context-shift,h2o", "-t", "1", "--observe", "capture")
                .succeeded();
        Cli.run("report", folder.toString()).succeeded();
        String page = Files.readString(folder.resolve("report.md"));
        assertTrue(page.contains("| h2o | 160 |") && page.contains("| rule |"), page);
        String command = page.lines()
                .filter(line -> line.startsWith("    bin/kvmerge facts "))
                .findFirst()
                .orElseThrow();
        JsonNode before = runs();
        String again =
                command.strip().substring("bin/kvmerge ".length()) + " --overwrite --out " + folder.resolve("out");
        Cli.run(again.split(" ")).succeeded();
        assertEquals(without(before), without(runs()), command);
    }

    /** The settings of strategies are taken, and noted. */
    @Test
    void aCalibrationIsChosen() throws IOException {
        String which = "entropy-merged:decay=1";
        facts("--strategies", which).failed(2, "decay=0.9", "--calibration none");
        facts("--strategies", which, "--calibration", "none", "--recent-share", "0.5")
                .succeeded();
        String noted = runs().get(0).get("parameters").asText();
        assertTrue(
                noted.contains("recentShare=0.5") && noted.contains("decay=1") && noted.contains("calibration=none"),
                noted);
        facts("--strategies", "full,context-shift", "--recent-share", "0.5", "--overwrite")
                .failed(2, "--recent-share has no effect on full, context-shift");
    }

    /** Runs but for the time they took. */
    private static String without(JsonNode runs) {
        return runs.toString().replaceAll("\"seconds\":[^,]+,", "");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "--facts 41; --facts must be 1 to 40",
                "--tokens 100000000; --tokens must be 1 to 1048576",
                "--answer 0; --answer positive",
                "--block 16; --block 32 to 1048576",
                "--block 2147483647 --strategies full; --block 32 to 1048576",
                "--cells 2147483647 --strategies h2o; which fit into 2147483647 cells",
                "--cells 2147483647 --strategies context-shift; --cells 2147483647 are more than",
                "--cells 500 --strategies full; --cells goes with a strategy other than full",
                "--resume --overwrite; exclude each other",
                "--strategies nonsense; nonsense",
                "--tokens 1500 --cells 1024; does not hold 40 facts",
                "--tokens 9000 --strategies full; trained on 8192 positions",
                "--answer 120 --facts 1 --tokens 300 --strategies full; do not fit into a block of 128"
            })
    void whatCannotBeAsked(String args, String why) {
        String out = folder.resolve("out").toString();
        Cli.run(("facts " + args.strip() + " --out " + out).split(" ")).failed(2, why.strip());
    }
}
