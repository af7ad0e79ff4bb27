package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.Calibrations;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A calibration that was made anew has the name of the one before, and results with that one are not its own. */
@Tag("model")
class SameNameCalibrationTest {
    @TempDir
    Path folder;

    private final Calibration before = Calibrations.of(Path.of("SmolLM2-135M-Instruct.gguf"));

    /** The same name, and another weight of each head. */
    private Calibration after() {
        float[][] weights = Arrays.stream(before.weights()).map(float[]::clone).toArray(float[][]::new);
        for (float[] head : weights) {
            head[1] = 0.25f; // as the file keeps it
        }
        return new Calibration(
                before.name(),
                before.layers(),
                before.kvHeads(),
                before.keyDimension(),
                before.decay(),
                before.massPower(),
                weights);
    }

    private JsonNode resume(Calibration calibration, String file, String args) throws IOException {
        Path used = folder.resolve("c.json");
        Calibrations.write(calibration, used);
        Path out = folder.resolve("out");
        String all = args + " --strategies entropy-merged --compression 0.5 --block 64 -t 1 --resume --calibration "
                + used + " --out " + out;
        Cli.run(all.split(" ")).succeeded();
        return new ObjectMapper().readTree(out.resolve(file).toFile());
    }

    @Test
    void anExperimentMakesItsRunsAgain() throws IOException {
        String args = "experiment --tokens 320 --noise-floor off";
        JsonNode first = resume(before, "results.json", args).get("runs");
        assertEquals(first, resume(before, "results.json", args).get("runs"), "nothing is made again");
        JsonNode second = resume(after(), "results.json", args).get("runs");
        assertEquals(2, second.size());
        assertEquals(
                first.get(1).get("parameters").get("calibration"),
                second.get(1).get("parameters").get("calibration"));
        assertNotEquals(first.get(1).get("kl_mean"), second.get(1).get("kl_mean"));
        withoutDigests("results.json");
        assertEquals(
                second.get(1).get("kl_mean"),
                resume(after(), "results.json", args).get("runs").get(1).get("kl_mean"));
        assertTrue(Files.readString(folder.resolve("out/results.json")).contains("calibrationDigest"), "made again");
    }

    @Test
    void tasksAreAskedAgainBesideThoseOfBefore() throws IOException {
        String args = "ruler --tasks niah_multikey_2 --tokens 512 --texts 1";
        JsonNode first = resume(before, "ruler.json", args).get("readings");
        assertEquals(2, first.size());
        withoutDigests("ruler.json");
        JsonNode again = resume(before, "ruler.json", args).get("readings");
        assertEquals(3, again.size(), "which calibration the reading of before was with is not known");
        assertEquals(first.get(1).get("answers"), again.get(1).get("answers"), "it stays");
        assertEquals(first.get(1).get("parameters"), again.get(2).get("parameters"));
        assertEquals(4, resume(after(), "ruler.json", args).get("readings").size());
        Cli.run("report", folder.toString()).succeeded();
        String page = Files.readString(folder.resolve("report.md"));
        for (Calibration one : new Calibration[] {before, after()}) {
            assertTrue(page.contains(", calibrationDigest=" + one.digest() + "} |"), page);
        }
    }

    /** As results were until they had digests. */
    private void withoutDigests(String file) throws IOException {
        Path json = folder.resolve("out").resolve(file);
        String now = Files.readString(json);
        String then = now.replaceAll(",\\s*\"calibrationDigest\" : \"\\w+\"|, calibrationDigest=\\w+", "");
        assertNotEquals(now, then);
        Files.writeString(json, then);
    }
}
