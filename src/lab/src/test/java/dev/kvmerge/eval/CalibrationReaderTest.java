package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvmerge.TestModel;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.Calibrations;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The library's own reader of calibrations beside Jackson: the same bits. */
@Tag("fast")
class CalibrationReaderTest {
    private static final Path SHIPPED =
            TestModel.HOME.resolve("src/library/src/main/resources/dev/kvmerge/attention/calibrations");

    @TempDir
    Path folder;

    private static void assertSame(Path file) throws Exception {
        Calibration expected = new ObjectMapper().readValue(file.toFile(), Calibration.class);
        Calibration read = Calibrations.read(file);
        assertEquals(expected.name(), read.name());
        assertEquals(expected.layers(), read.layers());
        assertEquals(expected.kvHeads(), read.kvHeads());
        assertEquals(expected.keyDimension(), read.keyDimension());
        assertEquals(expected.decay(), read.decay());
        assertEquals(expected.massPower(), read.massPower());
        for (int i = 0; i < expected.weights().length; i++) {
            assertArrayEquals(expected.weights()[i], read.weights()[i], 0f);
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"SmolLM2-135M-Instruct", "gemma-3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"})
    void thoseThatComeWithKvmerge(String name) throws Exception {
        assertSame(SHIPPED.resolve(name + ".json"));
    }

    @Test
    void numbersOfAllKinds() throws Exception {
        Random random = new Random(20);
        StringBuilder weights = new StringBuilder("1e-46,-0,0.0,123456789,1E+5,16777217");
        for (int i = 0; i < 5000; i++) {
            double x = Math.scalb(random.nextGaussian(), random.nextInt(160) - 80);
            weights.append(',').append(i % 2 == 0 ? Double.toString(x) : Float.toString((float) x));
        }
        assertSame(Files.writeString(
                folder.resolve("c.json"),
                "{\"name\":\"n\",\"layers\":1,\"kvHeads\":1,\"keyDimension\":5000,\"decay\":0.95,\"massPower\":1.5,"
                        + "\"weights\":[["
                        + weights + "]]}"));
    }
}
