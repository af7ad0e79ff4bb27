package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.nio.file.Path;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Tag("fast")
class CalibrationsTest {
    @ParameterizedTest
    @ValueSource(
            strings = {
                "SmolLM2-135M-Instruct.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct-Q4_K_M.gguf",
                "SmolLM2-135M-Instruct-iq4_nl.GGUF",
                "SmolLM2-135M-Instruct.f16.gguf"
            })
    void oneIsFoundForEveryQuantisationOfAModel(String file) {
        assertEquals(30, Calibrations.of(Path.of("nowhere", file)).layers());
    }

    @Test
    void oneIsThereForEachModelOfTheList() {
        assertEquals(256, Calibrations.of(Path.of("gemma-3-270m-q4_k_m.gguf")).keyDimension());
        assertNotNull(Calibrations.of(Path.of("SmolLM2-135M-Instruct.Q4_1.gguf")));
    }

    @ParameterizedTest
    @ValueSource(strings = {"SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M-Instruct-v2.gguf", "gemma-3-270m-it-q8_0.gguf"})
    void anotherModelHasNone(String file) {
        assertNull(Calibrations.of(Path.of("nowhere", file)));
    }
}
