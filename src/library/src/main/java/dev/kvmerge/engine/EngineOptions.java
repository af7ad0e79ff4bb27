package dev.kvmerge.engine;

import dev.kvmerge.attention.Calibrations;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.Planner;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.util.Objects;
import java.util.function.Function;

/**
 * How to make an engine.
 *
 * @param cells cells that stay of a session after each block (--cells)
 * @param block most tokens of a session that are decoded between two compressions (--block)
 * @param promptBlock the same of a prompt (--prompt-block), as {@link CacheOptions#promptBlock}; 0 for a block
 * @param sessions sessions side by side (--parallel), each with cells of its own
 * @param positionRange positions of a session, as {@link CacheOptions#positionRange}: 0 where they grow with the text,
 *     {@link #MODELS_POSITIONS} for as many as suit the model, so that a chat may last longer than they do
 * @param strategy decides what stays, asked once for a session
 * @param compute how llama.cpp computes
 * @param backend where the model's layers live
 * @param gpuLayers layers on the devices (-ngl), -1 for all
 */
public record EngineOptions(
        int cells,
        int block,
        int promptBlock,
        int sessions,
        int positionRange,
        Function<Model, Planner> strategy,
        ComputeSettings compute,
        Backend backend,
        int gpuLayers) {
    /**
     * As {@link CacheOptions#positionRange(int, int, int)} has it for the model. A model with sliding windows has no
     * range: its positions grow, and past those that it was trained on it gets worse.
     */
    public static final int MODELS_POSITIONS = -1;

    /** Positions left for a prompt's block, on a CPU as on a GPU, so that sessions saved on one load on the other. */
    private static final int PROMPT_ROOM = 512;

    public EngineOptions {
        Limits.least("cells (--cells)", cells, 1);
        Limits.least("block (--block)", block, 1);
        Limits.least("promptBlock (--prompt-block)", promptBlock, 0);
        Limits.least("sessions (--parallel)", sessions, 1);
        Limits.most("sessions (--parallel)", sessions, ContextOptions.MOST_SEQUENCES);
        Limits.least("positionRange (--position-range)", positionRange, MODELS_POSITIONS);
        Objects.requireNonNull(strategy, "strategy");
        Objects.requireNonNull(compute, "compute");
        Objects.requireNonNull(backend, "backend");
        Limits.least("gpuLayers (-ngl)", gpuLayers, -1);
    }

    /**
     * One session of 2,048 cells and blocks of 128, entropy-merged with the model's calibration where there is one, on
     * the CPU with flash attention.
     */
    public static EngineOptions usual() {
        return new EngineOptions(
                2048,
                128,
                0,
                1,
                MODELS_POSITIONS,
                model -> new EntropyMerged(Calibrations.of(model.path())),
                ComputeSettings.usual().withFlashAttention(FlashAttention.ON),
                Backend.CPU,
                0);
    }

    /** The same with another number of cells. */
    public EngineOptions withCells(int n) {
        return new EngineOptions(n, block, promptBlock, sessions, positionRange, strategy, compute, backend, gpuLayers);
    }

    /** The same with all cells that llama.cpp allocates for these: {@link CacheOptions#filled}. */
    public EngineOptions filled() {
        return withCells(limited().filled().cells());
    }

    /** The same with other blocks. */
    public EngineOptions withBlock(int n) {
        return new EngineOptions(cells, n, promptBlock, sessions, positionRange, strategy, compute, backend, gpuLayers);
    }

    /** The same with prompts in other blocks; 0 for the same as all else. */
    public EngineOptions withPromptBlock(int n) {
        return new EngineOptions(cells, block, n, sessions, positionRange, strategy, compute, backend, gpuLayers);
    }

    /** The same with so many sessions. */
    public EngineOptions withSessions(int n) {
        return new EngineOptions(cells, block, promptBlock, n, positionRange, strategy, compute, backend, gpuLayers);
    }

    /** The same within so many positions. */
    public EngineOptions withPositionRange(int n) {
        return new EngineOptions(cells, block, promptBlock, sessions, n, strategy, compute, backend, gpuLayers);
    }

    /** The same with another strategy. */
    public EngineOptions withStrategy(Function<Model, Planner> s) {
        return new EngineOptions(cells, block, promptBlock, sessions, positionRange, s, compute, backend, gpuLayers);
    }

    /** The same, computed otherwise. */
    public EngineOptions withCompute(ComputeSettings c) {
        return new EngineOptions(cells, block, promptBlock, sessions, positionRange, strategy, c, backend, gpuLayers);
    }

    /** The same on other devices. */
    public EngineOptions withBackend(Backend where, int layers) {
        return new EngineOptions(cells, block, promptBlock, sessions, positionRange, strategy, compute, where, layers);
    }

    /** How a session of a model has its cells. */
    public CacheOptions cache(Model model, Planner planner) {
        if (planner.keepsAll()) {
            return CacheOptions.unlimited(limited().wanted(), block)
                    .withPromptBlock(promptBlock)
                    .withFates()
                    .with(compute);
        }
        return limited().withPositionRange(positions(model)).withFates().with(compute);
    }

    private CacheOptions limited() {
        return CacheOptions.of(cells, block).withPromptBlock(promptBlock);
    }

    private int positions(Model model) {
        if (positionRange != MODELS_POSITIONS) {
            return positionRange;
        }
        return model.slidingWindow() > 0
                ? 0
                : CacheOptions.positionRange(
                        model.trainedContext(),
                        cells,
                        Math.max(PROMPT_ROOM, limited().promptBlock()));
    }
}
