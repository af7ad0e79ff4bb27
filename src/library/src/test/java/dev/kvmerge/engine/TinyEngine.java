package dev.kvmerge.engine;

import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.Model;
import java.nio.file.Path;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;

/** Engines over a tiny model with random weights and the words of bytes and letters. */
class TinyEngine {
    static final int CELLS = 64;
    static final int BLOCK = 32;

    @TempDir
    static Path folder;

    static Model model;

    @BeforeAll
    static void load() {
        Geometry tiny = new Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        model = Model.load(
                TestModel.library(), TinyGguf.writeWords(folder.resolve("words.gguf"), tiny), Backend.CPU, 0);
    }

    @AfterAll
    static void close() {
        model.close();
    }

    static EngineOptions options(int sessions) {
        return EngineOptions.usual()
                .withCells(CELLS)
                .withBlock(BLOCK)
                .withSessions(sessions)
                .withCompute(EngineOptions.usual().compute().withThreads(1));
    }

    static Engine engine(int sessions) {
        return Engine.of(model, options(sessions));
    }

    static String prompt(int n) {
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < n; i++) {
            text.append((char) ('a' + i * i % 26));
        }
        return text.toString();
    }

    static GenerateOptions drawn(int n) {
        return GenerateOptions.usual()
                .withMaxTokens(n)
                .withIgnoreEos(true)
                .withSampling(Sampling.usual().withTemperature(2).withTopK(0).withSeed(7));
    }
}
