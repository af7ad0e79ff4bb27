package dev.kvmerge.attention;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Tag("fast")
class CalibrationsTest {
    private static final String WHOLE = "{\"name\":\"a\",\"layers\":1,\"kvHeads\":1,\"keyDimension\":2,\"decay\":0.9,"
            + "\"weights\":[[-1,0.5,0.25,-0.125,0,7e-1,2,-3]]}";

    @TempDir
    Path folder;

    private KvmergeException refused(String text) throws Exception {
        Path file = Files.writeString(folder.resolve("c.json"), text, StandardCharsets.ISO_8859_1);
        KvmergeException e = assertThrows(KvmergeException.class, () -> Calibrations.read(file), text);
        assertTrue(e.getMessage().contains(file.toString()), e.getMessage());
        assertTrue(e.getMessage().contains("kvmerge calibrate"), e.getMessage());
        return e;
    }

    @Test
    void whatIsWrittenIsRead() throws Exception {
        float[][] weights = {{-1, .5f, 1e-7f, -.125f, 0, 3e20f, 2, -3}};
        Path file = folder.resolve("model.gguf.calibration.json");
        Calibrations.write(new Calibration("a \"b\" \\ \n \u00fc", 1, 1, 2, 0.9, 1.5, weights), file);
        Calibration read = Calibrations.of(folder.resolve("model.gguf"));
        assertEquals("a \"b\" \\ \n \u00fc", read.name());
        assertArrayEquals(weights[0], read.weights()[0]);
        assertEquals(0.9, read.decay());
        assertEquals(1.5, read.massPower());
    }

    /** As Python's hashlib has it, of struct.pack(">3i2d8f", 1, 1, 2, 0.9, 1.5, ...). */
    @Test
    void theDigestIsOfAllButTheName() {
        float[] weights = {-1, .5f, .25f, -.125f, -.3f, .7f, 2, -3};
        Calibration calibration = new Calibration("a", 1, 1, 2, 0.9, 1.5, new float[][] {weights});
        assertEquals("9df167b907b2", calibration.digest());
        assertEquals("9df167b907b2", new Calibration("b", 1, 1, 2, 0.9, 1.5, new float[][] {weights}).digest());
        Path file = folder.resolve("c.json");
        Calibrations.write(calibration, file);
        assertEquals("9df167b907b2", Calibrations.read(file).digest());
        float[] other = weights.clone();
        other[7] = -3.0001f;
        float[][] twice = {weights, weights};
        Set<String> digests = Stream.of(
                        calibration,
                        new Calibration("a", 1, 1, 2, 0.9, 1.5, new float[][] {other}),
                        new Calibration("a", 1, 1, 2, 0.95, 1.5, new float[][] {weights}),
                        new Calibration("a", 1, 1, 2, 0.9, 1, new float[][] {weights}),
                        new Calibration("a", 1, 2, 2, 0.9, 1.5, twice),
                        new Calibration("a", 2, 1, 2, 0.9, 1.5, twice))
                .map(Calibration::digest)
                .collect(Collectors.toSet());
        assertEquals(6, digests.size(), digests::toString);
    }

    @Test
    void fieldsComeInAnyOrderAndSpaced() throws Exception {
        Path file = Files.writeString(
                folder.resolve("c.json"),
                " { \"weights\" : [ [ 1 , 2 , 3 , 4 , 5 , 6.5E-1 ,7, 8 ] ] ,\r\n \"decay\":1,\"keyDimension\":2,"
                        + "\"kvHeads\":1,\"layers\":1,\t\"name\":\"\\u00fc\\n\"}\n");
        Calibration read = Calibrations.read(file);
        assertEquals("\u00fc\n", read.name());
        assertEquals(.65f, read.weights()[0][5]);
        assertEquals(1, read.massPower(), "as in files of 0.1, which do not say");
    }

    @Test
    void everyCutAndEveryChangeOfAStructuralCharacterIsRefused() throws Exception {
        for (int length = 0; length < WHOLE.length(); length++) {
            refused(WHOLE.substring(0, length));
        }
        for (int i = 0; i < WHOLE.length(); i++) {
            if ("{}[]:\"".indexOf(WHOLE.charAt(i)) >= 0) {
                refused(WHOLE.substring(0, i) + "x" + WHOLE.substring(i + 1));
            }
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "layers\":1=layers\":0",
                "layers\":1=layers\":-1",
                "layers\":1=layers\":1.0",
                "layers\":1=layers\":2",
                "layers\":1=layers\":1,\"layers\":1",
                "layers\":1=layers\":1,\"more\":1",
                "layers\":1=layers\":99999999999",
                "layers\":1=layers\":null",
                "keyDimension\":2=keyDimension\":3",
                "decay\":0.9=decay\":1.1",
                "decay\":0.9=decay\":0.9,\"massPower\":3",
                "[[-1,=[[-1,,",
                "[[-1,=[[NaN,",
                "[[-1,=[[1e39,",
                "[[-1,=[[01,",
                "[[-1,=[[+1,",
                "[[-1,=[[.5,",
                "[[-1,=[[1.,",
                "[[-1,=[[\"1\",",
                "[[-1,=[[],[-1,",
                "]]}=]]}}",
                "]]}=]],}",
                "\"a\"=\"\\x\"",
                "\"a\"=\"\\u12\"",
                "\"a\"=\"\u00fc\"",
            })
    void whatIsNoCalibrationIsRefused(String change) throws Exception {
        String[] words = change.split("=", 2);
        String text = WHOLE.replace(words[0], words[1]);
        assertTrue(!text.equals(WHOLE), change);
        refused(text);
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "SmolLM2-135M-Instruct.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct-Q4_K_M.gguf",
                "SmolLM2-135M-Instruct-iq4_nl.GGUF",
                "SmolLM2-135M-Instruct.f16.gguf",
                "SmolLM2-135M-Instruct-fp16.gguf",
                "SmolLM2-135M-Instruct-FP32.gguf"
            })
    void oneIsFoundForEveryQuantisationOfAModel(String file) {
        assertEquals(30, Calibrations.of(Path.of("nowhere", file)).layers());
    }

    @Test
    void oneIsThereForEachModelOfTheList() {
        assertEquals(256, Calibrations.of(Path.of("gemma-3-270m-q4_k_m.gguf")).keyDimension());
        assertNotNull(Calibrations.of(Path.of("SmolLM2-135M-Instruct.Q4_1.gguf")));
        assertEquals(64, Calibrations.of(Path.of("qwen2.5-coder-0.5b.gguf")).keyDimension());
        assertEquals(128, Calibrations.of(Path.of("qwen2.5-coder-1.5b.gguf")).keyDimension());
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf",
                "qwen2.5-coder-1.5b-instruct-q8_0.gguf",
                "qwen2.5-coder-1.5b.gguf"
            })
    void oneIsFoundByTheNamesThatAModelIsPublishedUnder(String file) {
        assertEquals(28, Calibrations.of(Path.of("nowhere", file)).layers());
    }

    @ParameterizedTest
    @ValueSource(strings = {"SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M-Instruct-v2.gguf", "gemma-3-270m-it-q8_0.gguf"})
    void anotherModelHasNone(String file) {
        assertNull(Calibrations.of(Path.of("nowhere", file)));
    }
}
