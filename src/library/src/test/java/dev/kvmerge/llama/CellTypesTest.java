package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.strategy.Full;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Tag("model")
class CellTypesTest {
    private final Model model = TestModel.model();

    @Test
    void onePairOrOneType() {
        assertEquals(new CellTypes(CellType.Q8_0, CellType.Q8_0), CellTypes.parse("q8_0"));
        assertEquals(new CellTypes(CellType.Q8_0, CellType.IQ4_NL), CellTypes.parse("Q8_0/iq4_nl"));
        assertEquals("q5_1", CellTypes.parse("q5_1/q5_1").text());
        assertEquals("q5_1/f16", CellTypes.parse("q5_1/f16").text());
        for (String none : new String[] {"", "q8", "q8_0/", "/q8_0", "q8_0/q4_0/q4_0"}) {
            String message = assertThrows(KvmergeException.Usage.class, () -> CellTypes.parse(none))
                    .getMessage();
            assertTrue(message.contains("no cells of type '" + none + "'"), message);
        }
    }

    /** Against what the native library finds in llama.cpp's own tensors. */
    @ParameterizedTest
    @ValueSource(strings = {"f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/q4_0", "f32/q5_1"})
    void aCellTakesWhatLlamaCppAllocates(String text) {
        CellTypes types = CellTypes.parse(text);
        ComputeSettings settings = ComputeSettings.usual().withThreads(1).withCells(types);
        try (CompressedContext context = new CompressedContext(
                model, new Full(), CacheOptions.unlimited(300, 32).with(settings))) {
            context.decode(TestModel.book(0, 8));
            assertEquals(512 * CellMemory.ofCell(model, types), context.info().bytes());
            assertEquals(types.keys().text(), context.info().keyType());
            assertEquals(types.values().text(), context.info().valueType());
        }
    }

    @Test
    void memoryHoldsWholePaddings() {
        CellTypes types = CellTypes.parse("q8_0/q4_0");
        double padding = 256 * CellMemory.ofCell(model, types);
        assertEquals(0, CellMemory.mostCells(model, types, padding - 1));
        assertEquals(256, CellMemory.mostCells(model, types, padding));
        assertEquals(256, CellMemory.mostCells(model, types, 2 * padding - 1));
        assertEquals(512, CellMemory.mostCells(model, types, 2 * padding));
        assertEquals(ContextOptions.MOST_CELLS, CellMemory.mostCells(model, types, 1e30));
    }
}
