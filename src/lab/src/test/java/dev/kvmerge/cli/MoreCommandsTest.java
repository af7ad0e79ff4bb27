package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The commands beside the main one, on the real model, small. */
@Tag("model")
class MoreCommandsTest {
    @TempDir
    Path folder;

    private String out(String name) {
        return folder.resolve(name).toString();
    }

    private static JsonNode runs(Path results) throws IOException {
        return new ObjectMapper()
                .readTree(results.resolve("results.json").toFile())
                .get("runs");
    }

    @Test
    void benchHasLlamaBenchsForms() throws IOException {
        String[] common = {"bench", "-p", "192", "-n", "4", "-r", "2", "--block", "64", "--compression", "0.5"};
        Cli table = Cli.run(common).succeeded();
        List<String> lines = table.out().lines().filter(l -> l.startsWith("|")).toList();
        assertEquals(6, lines.size(), table.out());
        assertTrue(
                lines.get(0).contains(" test |") && lines.get(0).stripTrailing().endsWith("t/s |"), lines.get(0));
        assertTrue(lines.get(2).contains("llama.cpp")
                && lines.get(2).contains("pp192")
                && lines.get(2).contains("1.00 x"));
        assertTrue(lines.get(3).contains("entropy-merged 50 %"));
        assertTrue(lines.get(5).contains("tg4 @ 192"));
        String[] json = java.util.Arrays.copyOf(common, common.length + 2);
        json[common.length] = "-o";
        json[common.length + 1] = "json";
        JsonNode rows = new ObjectMapper().readTree(Cli.run(json).succeeded().out());
        assertEquals(4, rows.size());
        assertEquals(2, rows.get(1).get("samples_ts").size());
        assertTrue(rows.get(1).get("overhead").asDouble() > 0);
        for (JsonNode row : rows) {
            assertTrue(List.of("on", "off").contains(row.get("flash_attn").asText()), row::toString);
        }
        assertEquals(1, rows.get(0).get("speed").asDouble(), "llama.cpp alone at its fastest setting is the measure");
        Cli.run(
                        "bench",
                        "-p",
                        "256",
                        "-n",
                        "2",
                        "-r",
                        "1",
                        "-fa",
                        "on",
                        "--compression",
                        "0.5",
                        "--block",
                        "32",
                        "--prompt-block",
                        "96")
                .succeeded();
        Cli.run("bench", "-p", "256", "--compression", "0.5", "--block", "32", "--prompt-block", "128")
                .failed(2, "needs at least 132 cells with blocks of 128");
        Cli.run("bench", "-p", "100", "--compression", "0.9").failed(2, "needs at least 132 cells");
        Cli.run("bench", "-o", "xml").failed(2, "md, csv or json");
        Cli.run("bench", "-r", "0").failed(2, "-r must be positive");
    }

    @Test
    void calibrateLearnsAndExperimentUsesIt() throws IOException {
        Path file = folder.resolve("learned.json");
        Cli.run("calibrate", "-f", "paradise-lost", "--pieces", "1", "--tokens", "1024", "--out", file.toString())
                .succeeded();
        JsonNode learned = new ObjectMapper().readTree(file.toFile());
        assertEquals(
                "paradise-lost: 1 x 1024 tokens; conversations: 1 x 1024 tokens",
                learned.get("name").asText(),
                "as many conversations as pieces");
        assertEquals(90, learned.get("weights").size());
        assertEquals(6 + 64, learned.get("weights").get(0).size());
        String[] experiment = {
            "experiment",
            "--noise-floor",
            "off",
            "--tokens",
            "384",
            "--block",
            "64",
            "--compression",
            "0.7",
            "--overwrite",
            "--strategies",
            "full,entropy-merged,q8_0,weights:type=q4_0",
            "--out",
            out("calibrated"),
            "--calibration",
            file.toString()
        };
        Cli.run(experiment).succeeded();
        JsonNode with = runs(folder.resolve("calibrated")).get(1);
        assertTrue(with.get("parameters").get("calibration").asText().startsWith("paradise-lost"), with.toString());
        experiment[experiment.length - 1] = "none";
        Cli.run(experiment).succeeded();
        JsonNode without = runs(folder.resolve("calibrated")).get(1);
        assertEquals("none", without.get("parameters").get("calibration").asText());
        assertTrue(with.get("kl_mean").asDouble() != without.get("kl_mean").asDouble());
        JsonNode quantised = runs(folder.resolve("calibrated")).get(2); // a scale: all cells, the same tokens scored
        assertTrue(quantised.get("kl_mean").asDouble() < without.get("kl_mean").asDouble() / 2, quantised.toString());
        assertTrue(quantised.get("kv_bytes").asLong()
                < quantised.get("kv_bytes_full").asLong());
        assertEquals(without.get("scored").asInt(), quantised.get("scored").asInt());
        JsonNode lighter = runs(folder.resolve("calibrated")).get(3); // smaller weights, all cells
        assertEquals("q4_0", lighter.get("parameters").get("type").asText());
        assertTrue(lighter.get("kl_mean").asDouble() > quantised.get("kl_mean").asDouble(), lighter.toString());
        assertFalse(Files.exists(folder.resolve("calibrated/weights.gguf")));
        Files.writeString(file, Files.readString(file).replace("],\n[", "],\n[1,"));
        experiment[experiment.length - 1] = file.toString();
        Cli.run(experiment).failed(1, "make it again with 'kvmerge calibrate'");
        experiment[experiment.length - 1] = out("nowhere.json");
        Cli.run(experiment).failed(1, "cannot read the calibration");
        Cli.run("calibrate", "--pieces", "0").failed(2, "--pieces must be positive");
        Cli.run("calibrate", "--conversations", "33").failed(2, "--conversations can be 32 at most");
        Cli.run("calibrate", "-f", "alice", "--pieces", "99", "--out", out("x.json"))
                .failed(2, "use a longer text");
        assertFalse(Files.exists(folder.resolve("x.json")));
    }

    /** Conversations are read besides the texts, and the calibration says so. */
    @Test
    void calibrateReadsConversations() throws IOException {
        JsonNode without = calibrated("0");
        JsonNode with = calibrated("2"); // one of each form
        assertEquals("alice: 1 x 1024 tokens", without.get("name").asText());
        assertEquals(
                "alice: 1 x 1024 tokens; conversations: 2 x 1024 tokens",
                with.get("name").asText());
        assertFalse(with.get("weights").equals(without.get("weights")), "they are learned from");

        Path silent = folder.resolve("silent.txt");
        Files.writeString(silent, "no end ".repeat(1000));
        calibrate(silent.toString(), "1")
                .failed(2, "silent.txt", "0 sentences", "use other texts", "--conversations 0");
        Cli alone = Cli.run(
                        "calibrate",
                        "-f",
                        silent.toString(),
                        "--pieces",
                        "1",
                        "--tokens",
                        "1024",
                        "--out",
                        out("silent.json"))
                .succeeded();
        assertTrue(alone.err().contains("calibrating on texts alone: no conversation with the text"), alone.err());
    }

    private JsonNode calibrated(String conversations) throws IOException {
        calibrate("alice", conversations).succeeded();
        return new ObjectMapper()
                .readTree(folder.resolve("told-" + conversations + ".json").toFile());
    }

    private Cli calibrate(String text, String conversations) {
        String[] args = {
            "calibrate",
            "-f",
            text,
            "--pieces",
            "1",
            "--tokens",
            "1024",
            "--conversations",
            conversations,
            "--out",
            out("told-" + conversations + ".json")
        };
        return Cli.run(args);
    }

    /** What cannot be is said before a full cache is run to compare with. */
    @Test
    void aCalibrationOfAnotherModelIsRefusedFirst() throws IOException {
        Path other = folder.resolve("other.json");
        Files.writeString(
                other,
                "{\"name\":\"other\",\"layers\":1,\"kvHeads\":1,\"keyDimension\":2,\"decay\":0.9,"
                        + "\"weights\":[[1,1,1,1,1,1,1,1]]}");
        Cli.run("experiment", "--calibration", other.toString(), "--out", out("refused"))
                .failed(1, "'other' is for 1 layers with 1 KV heads, the model has 30 with 3");
        assertFalse(Files.exists(folder.resolve("refused/results.json")));
    }

    /** Its cells hold a window, whatever that is. */
    @Test
    void quickstartTakesModelsWithSlidingWindows() throws IOException {
        Geometry gemma = new Geometry("gemma3", 4, 1, 32, 1000000, "none", 32, false, 300, 2);
        Path model = TinyGguf.write(folder.resolve("gemma.gguf"), gemma);
        Cli run = Cli.run("quickstart", "-m", model.toString(), "-t", "1", "--out", out("quick"))
                .succeeded();
        assertTrue(run.out().contains("entropy-merged: 512 tokens in 320 cells"), run.out());
    }

    @Test
    void needleSaysWhatIsFoundWhere() throws IOException {
        Cli run = Cli.run(
                        "needle",
                        "--junk",
                        "--tokens",
                        "320",
                        "--depths",
                        "0.5,0.9",
                        "--trials",
                        "1",
                        "--block",
                        "64",
                        "--strategies",
                        "full,streaming-llm",
                        "--compression",
                        "0.6",
                        "--out",
                        out("needle"))
                .succeeded();
        assertTrue(run.out().contains("at 50 %") && run.out().contains("streaming-llm 60 %"), run.out());
        List<String> csv = Files.readAllLines(folder.resolve("needle/needle.csv"));
        assertEquals(5, csv.size());
        double full = Double.parseDouble(csv.get(1).split(",")[5]);
        double gone = Double.parseDouble(csv.get(3).split(",")[5]);
        assertTrue(full < gone, "a number that is in the cache is likelier than one that was dropped: " + csv);
        Cli.run("needle", "--depths", "2").failed(2, "--depths must be 0..1");
    }

    @Test
    void prefillCompressesOnceAndScoresTheRest() throws IOException {
        Cli.run(
                        "experiment",
                        "--noise-floor",
                        "off",
                        "--prefill",
                        "128",
                        "--score",
                        "64",
                        "--tokens",
                        "400",
                        "--strategies",
                        "h2o,streaming-llm",
                        "--compression",
                        "0.5",
                        "--out",
                        out("prefill"))
                .succeeded();
        for (JsonNode r : runs(folder.resolve("prefill"))) {
            assertEquals(
                    2 * (64 - 1), r.get("scored").asInt(), "two passages, all but the first token after the prefill");
            assertEquals(
                    r.get("strategy").asText().equals("full") ? 192 : 64,
                    r.get("cells").asInt());
            assertTrue(r.get("perplexity").asDouble() > 1);
        }
        Cli.run("experiment", "--prefill", "500", "--tokens", "400", "--out", out("no"))
                .failed(2, "--prefill and --score");
        Cli.run(
                        "experiment",
                        "--noise-floor",
                        "off",
                        "--prefill",
                        "128",
                        "--score",
                        "64",
                        "--tokens",
                        "400",
                        "--strategies",
                        "oracle",
                        "--out",
                        out("no"))
                .failed(2, "the oracle knows the future");
    }

    @Test
    void theOracleBeatsEveryEvictor() throws IOException {
        Cli.run(
                        "experiment",
                        "--noise-floor",
                        "off",
                        "--tokens",
                        "768",
                        "--block",
                        "64",
                        "--strategies",
                        "oracle,oracle-merged,h2o,average-mass,snapkv,tova,keydiff,random",
                        "--compression",
                        "0.8",
                        "--out",
                        out("oracle"))
                .succeeded();
        double oracle = Double.NaN;
        double merged = Double.NaN;
        double best = Double.MAX_VALUE;
        for (JsonNode r : runs(folder.resolve("oracle"))) {
            if (r.get("strategy").asText().equals("oracle")) {
                oracle = r.get("kl_mean").asDouble();
            } else if (r.get("strategy").asText().equals("oracle-merged")) {
                merged = r.get("kl_mean").asDouble();
            } else if (!r.get("kl_mean").isNull()) {
                best = Math.min(best, r.get("kl_mean").asDouble());
            }
        }
        assertTrue(oracle < best, oracle + " nats, and the best method " + best);
        assertTrue(merged < best, merged + " nats with merging, and the best method " + best);
        assertFalse(Files.exists(folder.resolve("oracle/full-attention.bin")), "the record is scratch");
    }

    @Test
    void ablateMakesATableAndAPlotAndGoesOn() throws IOException {
        String[] arguments = {
            "ablate",
            "--vary",
            "recent-share=0.2,0.6",
            "--vary",
            "cells=0.5,0.7",
            "--vary",
            "block=64,256",
            "--tokens",
            "320",
            "--compression",
            "0.5",
            "--out",
            out("ablate")
        };
        Cli ablation = Cli.run(arguments).succeeded();
        assertTrue(ablation.err().contains("left out entropy-merged at blocks of 256"), ablation.err());
        String first = Files.readString(folder.resolve("ablate/ablation.md"));
        assertTrue(first.contains("| recent-share | KL ") && first.contains("| 0.6 | 0."), first);
        assertTrue(Files.size(folder.resolve("ablate/cells.svg")) > 1000);
        assertTrue(first.contains("\nnoise floor: KL ") && first.contains("\nnoise floor at 64: KL "), first);
        Cli.run(arguments).succeeded();
        assertEquals(first, Files.readString(folder.resolve("ablate/ablation.md")), "nothing is made again");
        Cli.run("ablate", "--vary", "bias=folded,exact", "-fa", "on").failed(2, "an exact bias", "-fa off");
        Cli.run("ablate", "--vary", "decay").failed(2, "--vary takes");
        Cli.run("ablate", "--vary", "speed=1,2").failed(2, "no parameter 'speed'");
    }

    @Test
    void endlessGoesPastItsCells() throws IOException {
        Cli run = Cli.run(
                        "endless",
                        "--cells",
                        "96",
                        "--block",
                        "32",
                        "--tokens",
                        "512",
                        "--full-tokens",
                        "512",
                        "--stretch",
                        "256",
                        "--out",
                        out("endless"))
                .succeeded();
        List<String> csv = Files.readAllLines(folder.resolve("endless/endless.csv"));
        assertEquals(1 + 3 * 2, csv.size(), run.out());
        double full = Double.parseDouble(csv.get(2).split(",")[2]);
        double ours = Double.parseDouble(csv.get(4).split(",")[2]);
        assertEquals(full, ours, 0.3 * full, "renumbered positions read the text as well as their own");
        assertTrue(Files.size(folder.resolve("endless/endless.svg")) > 1000);
        Cli.run("endless", "--strategies", "q8_0").failed(2, "no method but a scale");
        Cli.run("endless", "--strategies", "full", "--full-tokens", "0").failed(2, "nothing but the full cache");
        Cli.run("endless", "--strategies", "full", "--full-tokens", "64", "--block", "32", "--out", out("full"))
                .succeeded();
        assertTrue(Files.exists(folder.resolve("full/endless.csv")));
        Cli.run("endless", "--cells", "96", "--block", "32", "--position-range", "95")
                .failed(2, "must hold the 96 cells");
    }

    @Test
    void klDivergencePrintsTheReport() {
        Cli run = Cli.run("perplexity", "-c", "320", "--kl-divergence", "--strategy", "h2o", "--cells", "160")
                .succeeded();
        assertTrue(run.out().contains("====== KL divergence statistics ======"), run.out());
        assertTrue(run.out().matches("(?s).*Same top p: \\d+\\.\\d{3} \u00b1 .*"), run.out());
        assertTrue(run.err().contains("noise floor: KL "), run.err());
        Cli.run("perplexity", "--kl-divergence").failed(2, "name one");
    }

    @Test
    void reportShowsWhatIsThereAndNamesWhatIsMissing() throws IOException {
        Cli.run("experiment", "--tokens", "320", "--strategies", "h2o", "--compression", "0.5", "--out", out("a/whole"))
                .succeeded();
        Files.createDirectories(folder.resolve("a/broken"));
        Files.writeString(folder.resolve("a/broken/results.json"), "{\"runs\": [");
        Cli run = Cli.run("report", out("a")).succeeded();
        assertTrue(run.err().contains("broken"), run.err());
        String html = Files.readString(folder.resolve("a/report.html"));
        assertTrue(html.contains("<h2>whole</h2>") && html.contains("<svg ") && html.contains("class=\"missing\""));
        assertFalse(html.contains("src=\"http"), "one page, nothing from elsewhere");
        assertTrue(Files.readString(folder.resolve("a/report.md")).contains("| h2o | 50 % | 160 |"));
        Cli.run("report", out("nothing")).failed(2, "there is no folder");
        Files.createDirectories(folder.resolve("empty"));
        Cli.run("report", out("empty")).failed(1, "none of results.json, facts.json, ruler.json in", "or below");
    }

    @Test
    void rpcNeedsABackendAndAServer() {
        Cli.run("experiment", "--rpc", "127.0.0.1:1", "--out", out("rpc")).failed(1, "make llama-rpc");
        Cli.run("experiment", "--rpc", "127.0.0.1:1", "--device", "cpu", "--out", out("rpc"))
                .failed(2, "--device any");
        Cli.run("experiment", "--device", "any", "--out", out("rpc")).failed(1, "nothing but the CPU");
    }
}
