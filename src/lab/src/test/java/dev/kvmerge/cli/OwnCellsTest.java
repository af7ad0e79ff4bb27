package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Experiments whose runs have cells of types of their own, on the real model, small. */
@Tag("model")
class OwnCellsTest {
    @TempDir
    Path folder;

    private String out(String name) {
        return folder.resolve(name).toString();
    }

    private JsonNode results(String name) throws IOException {
        return new ObjectMapper()
                .readTree(folder.resolve(name).resolve("results.json").toFile());
    }

    private JsonNode runs(String name) throws IOException {
        return results(name).get("runs");
    }

    /** On one thread and 288 tokens, without the noise floor. */
    private static Cli experiment(String... more) {
        List<String> words =
                new ArrayList<>(List.of("experiment", "-t", "1", "--noise-floor", "off", "--tokens", "288"));
        words.addAll(List.of(more));
        return Cli.run(words.toArray(String[]::new));
    }

    /** What a run says of itself: its name, cells, flash attention, observed queries, and how it was observed. */
    private List<String> said(String name) throws IOException {
        List<String> said = new ArrayList<>();
        for (JsonNode run : runs(name)) {
            said.add(run.get("strategy").asText() + " " + run.get("cells") + " "
                    + run.get("flash_attention").asText() + " " + run.get("observed_queries")
                    + (run.get("observation").isNull()
                            ? ""
                            : " " + run.get("observation").asText()));
        }
        return said;
    }

    /** The report's command makes the same runs, with the same figures; where results do not say the options, too. */
    private void assertReproduced(String name) throws IOException {
        assertReproduced(name, "again");
        Path json = folder.resolve(name).resolve("results.json");
        Files.writeString(json, Files.readString(json).replaceFirst("(?s)  \"options\" : \\{.*?},\n", ""));
        assertReproduced(name, "older", "-t", "1", "--noise-floor", "off");
    }

    private void assertReproduced(String name, String way, String... more) throws IOException {
        Cli.run("report", out(name)).succeeded();
        String command = Files.readAllLines(folder.resolve(name).resolve("report.md")).stream()
                .filter(line -> line.startsWith("    bin/kvmerge experiment "))
                .findFirst()
                .orElseThrow();
        List<String> words = new ArrayList<>(
                Arrays.asList(command.strip().substring("bin/kvmerge ".length()).split(" ")));
        words.addAll(List.of(more));
        words.addAll(List.of("--out", out(name + way)));
        Cli.run(words.toArray(String[]::new)).succeeded();
        assertEquals(said(name), said(name + way), command);
        for (int i = 0; i < runs(name).size(); i++) {
            for (String figure : List.of("kl_mean", "perplexity", "scored", "compression")) {
                assertEquals(
                        runs(name).get(i).get(figure).toString(),
                        runs(name + way).get(i).get(figure).toString(),
                        figure + " of " + command);
            }
        }
    }

    /** Quantised V cells turn flash attention on for their runs alone, and each run says so. */
    @Test
    void eachRunSaysWithWhatFlashAttentionItRan() throws IOException {
        Cli run = experiment(
                        "--block",
                        "32",
                        "--compression",
                        "0.5",
                        "--observe-queries",
                        "8",
                        "--strategies",
                        "full@q4_0,h2o,h2o@q8_0/q4_0,h2o@q8_0/f16,streaming-llm@q4_0,q8_0",
                        "--out",
                        out("mixed"))
                .succeeded();
        assertEquals(
                List.of(
                        "full 288 off null",
                        "full@q4_0 288 on null",
                        "h2o 144 off null",
                        "h2o@q8_0/q4_0 144 on 8 capture",
                        "h2o@q8_0/f16 144 off null",
                        "streaming-llm@q4_0 144 on null",
                        "q8_0 288 on null"),
                said("mixed"));
        JsonNode settings = results("mixed").get("settings");
        assertEquals("off", settings.get("flash_attention").asText(), "of runs without cells of their own");
        assertTrue(settings.get("observed_queries").isNull(), settings::toString);
        assertTrue(run.out().contains("flash attention off, but on for full-q4-0-0, h2o-q8-0-q4-0-50, "), run.out());
        String line = run.out()
                .lines()
                .filter(l -> l.startsWith("  h2o@q8_0/q4_0 "))
                .findFirst()
                .orElseThrow();
        assertTrue(line.matches(".* %\\s+on\\s+256\\s.*"), line);
        assertReproduced("mixed");
        assertTrue(Files.readString(folder.resolve("mixed/report.md")).contains("flash attention off, but on for"));
    }

    @Test
    void aStoppedGraphIsReproducedToo() throws IOException {
        experiment(
                        "--block",
                        "32",
                        "--compression",
                        "0.5",
                        "-fa",
                        "on",
                        "--observe",
                        "stop",
                        "--strategies",
                        "h2o,expected-attention,streaming-llm",
                        "--out",
                        out("stopped"))
                .succeeded();
        assertEquals(
                List.of(
                        "full 288 on null",
                        "h2o 144 on null stop",
                        "expected-attention 144 on null stop",
                        "streaming-llm 144 on null"),
                said("stopped"));
        assertReproduced("stopped");
    }

    /** Without flash attention, the graph is stopped unless one says otherwise. */
    @Test
    void queriesCapturedWithoutFlashAttentionAreReproducedToo() throws IOException {
        experiment(
                        "--block",
                        "32",
                        "--compression",
                        "0.5",
                        "--observe",
                        "capture",
                        "--observe-queries",
                        "8",
                        "--strategies",
                        "h2o,streaming-llm",
                        "--out",
                        out("captured"))
                .succeeded();
        assertEquals(
                List.of("full 288 off null", "h2o 144 off 8 capture", "streaming-llm 144 off null"), said("captured"));
        assertReproduced("captured");
    }

    @Test
    void aPrefillIsReproducedToo() throws IOException {
        experiment(
                        "--prefill",
                        "128",
                        "--score",
                        "16",
                        "--compression",
                        "0.5",
                        "-fa",
                        "auto",
                        "--strategies",
                        "streaming-llm",
                        "--out",
                        out("prefill"))
                .succeeded();
        assertEquals(
                List.of("full 144 on null", "streaming-llm 64 on null"),
                said("prefill"),
                "what llama.cpp chose is said");
        assertReproduced("prefill");
    }

    /** Settings of strategies that are not in their names, a calibration, and how many cells are filled. */
    @Test
    void givenOptionsAreReproducedToo() throws IOException {
        String options = "--sinks 2 --recent-share 0.5 --bias none --calibration none --fill";
        String args = "--block 32 --strategies entropy-merged --compression 0.5 -fa on -ub 64 --out " + out("options");
        experiment((options + " " + args).split(" ")).succeeded();
        assertEquals(List.of("full 288 on null", "entropy-merged 224 on 32 capture"), said("options"));
        assertReproduced("options", "again");
        String report = Files.readString(folder.resolve("options/report.md"));
        for (String given : (options.replaceAll(" --", "\n--") + "\n-t 1\n--noise-floor off\n-ub 64").split("\n")) {
            assertTrue(report.contains(" " + given), given + " is not in " + report);
        }
        assertEquals(
                runs("options").get(1).get("parameters"),
                runs("optionsagain").get(1).get("parameters"));
        assertEquals(2, runs("optionsagain").size(), "no noise floor");
    }

    /** The folder of a parameter's values holds an experiment of its own. */
    @Test
    void whatAblateMadeIsReproducedToo() throws IOException {
        String args = "ablate --vary decay=0.5 --vary queries=8 --tokens 288 --compression 0.5 -fa on -t 1 --out ";
        Cli.run((args + out("ablate")).split(" ")).succeeded();
        for (String parameter : List.of("ablate/decay", "ablate/queries/8")) {
            assertReproduced(parameter, "again");
            assertEquals(
                    runs(parameter).get(1).get("parameters"),
                    runs(parameter + "again").get(1).get("parameters"));
        }
    }

    /** The cells of a window are of the memory too: without them, twice as many would stay, and all the text fit. */
    @Test
    void windowsAreOfTheMemory() throws IOException {
        Geometry gemma = new Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, 48, 2);
        Path model = TinyGguf.writeWords(folder.resolve("gemma.gguf"), gemma);
        Cli.run(
                        "experiment",
                        "-m",
                        model.toString(),
                        "-t",
                        "1",
                        "--tokens",
                        "288",
                        "--block",
                        "32",
                        "--kv-mib",
                        "0.04",
                        "--strategies",
                        "streaming-llm",
                        "--out",
                        out("windows"))
                .succeeded();
        assertEquals(
                List.of("full 288 on null", "streaming-llm@q8_0 224 on null", "full-again 288 on 32 capture"),
                said("windows"));
        int bytes = runs("windows").get(1).get("kv_bytes").asInt();
        assertEquals(2 * 256 * 2 * 34, bytes, "a layer with windows, and one without");
        assertTrue(bytes <= 0.04 * (1 << 20));
        Cli.run("experiment", "-m", model.toString(), "--tokens", "400", "--kv-mib", "0.02", "--out", out("none"))
                .failed(2, "entropy-merged needs at least 132 cells with blocks of 128, not 0:", "more --kv-mib");
        Cli.run("generate", "-m", model.toString(), "-p", "a", "--kv-mib", "0.02", "--strategy", "streaming-llm")
                .failed(2, "and the model's sliding window needs 48: give 0.1 or more");
    }

    /** Cells of several types within one memory, all compared with the full cache in F16. */
    @Test
    void equalMemory() throws IOException {
        Cli run = experiment(
                        "--block",
                        "32",
                        "--kv-mib",
                        "3.1,99",
                        "--strategies",
                        "full@q4_0,streaming-llm@q4_0,streaming-llm,full@q8_0/q5_1",
                        "--out",
                        out("memory"))
                .succeeded();
        List<String> names = new ArrayList<>();
        for (JsonNode each : runs("memory")) {
            names.add(each.get("strategy").asText() + " " + each.get("cells").asInt());
        }
        // In 99 MiB all of the text fits, so that those are the full caches' figures.
        assertEquals(
                List.of(
                        "full 288",
                        "full@q4_0 288",
                        "streaming-llm@q4_0 224",
                        "streaming-llm@q8_0 224",
                        "full@q8_0/q5_1 288"),
                names);
        JsonNode full = runs("memory").get(0);
        JsonNode small = runs("memory").get(1);
        JsonNode good = runs("memory").get(4);
        assertEquals(512 * 30 * 3 * 64 * 2 * 2, full.get("kv_bytes").asInt());
        assertEquals(512 * 30 * 3 * 64 * 2 * 18 / 32, small.get("kv_bytes").asInt());
        assertTrue(small.get("kl_mean").asDouble() > 3 * good.get("kl_mean").asDouble(), small + " " + good);
        for (int i : new int[] {2, 3}) {
            JsonNode compressed = runs("memory").get(i);
            assertTrue(compressed.get("kv_bytes").asInt() <= 3.1 * (1 << 20), compressed.toString());
        }
        assertEquals(
                "[null,null,3.1,3.1,null]",
                Arrays.toString(runs("memory").findValuesAsText("kv_mib").toArray())
                        .replace(" ", ""));
        assertEquals(
                "[full, full@q4_0, streaming-llm@q4_0, streaming-llm, full@q8_0/q5_1]",
                runs("memory").findValuesAsText("asked").toString());
        assertReproduced("memory");
        assertTrue(Files.readString(folder.resolve("memory/frontier.svg")).contains("streaming-llm@q4_0"), run.out());
    }
}
