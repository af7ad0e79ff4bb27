package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.LlamaCache;
import java.util.Objects;

/**
 * How to make a compressed context.
 *
 * @param cells cells that stay after each block; 0 for no limit (then {@code capacity} is what the whole text needs)
 * @param block most tokens decoded between two compressions
 * @param promptBlock the same of a prompt, which is a decode of more than a block: llama.cpp reads tokens faster, the
 *     more it is given at once, and each takes a cell until it is compressed. Less than a block counts as a block
 * @param capacity cells to allocate when there is no limit; ignored otherwise, where it is cells + promptBlock
 * @param positionRange 0: positions grow with the text. Else at most so many are used: once the text is longer, each
 *     compression moves the newest cell back to the last of them and the others with it, and those that come to the
 *     start are numbered 0, 1, 2, ..., their keys rotated to match. So a text may be longer than the positions that the
 *     model was trained on. A range of {@code cells} is Xiao et al.'s (2024)
 * @param compute how llama.cpp computes
 * @param fates whether it is recorded what became of each token, for {@link CompressedContext#fates}: 4 bytes a token,
 *     layer and KV head
 */
public record CacheOptions(
        int cells,
        int block,
        int promptBlock,
        int capacity,
        int positionRange,
        ComputeSettings compute,
        boolean fates) {
    public CacheOptions {
        Objects.requireNonNull(compute, "compute");
        if (block <= 0) {
            throw new KvmergeException.Usage("the block (--block) must be positive, not " + block);
        }
        promptBlock = Math.max(block, promptBlock);
        if (cells < 0 || (cells == 0 && capacity <= 0)) {
            throw new KvmergeException.Usage(
                    "the number of cells (--cells) must be positive, not " + (cells == 0 ? capacity : cells));
        }
        long wanted = cells == 0 ? capacity : (long) cells + promptBlock;
        if (wanted > ContextOptions.MOST_CELLS) {
            throw new KvmergeException.Usage("no context has " + wanted + " cells: use fewer --cells, or a smaller "
                    + (promptBlock > block ? "--prompt-block" : "--block"));
        }
        if (positionRange < 0 || (positionRange > 0 && positionRange < cells)) {
            throw new KvmergeException.Usage("the position range (--position-range) of " + positionRange
                    + " positions must hold the " + cells + " cells");
        }
    }

    /** Prompts in blocks like all else. */
    public CacheOptions(int cells, int block, int capacity, int positionRange, ComputeSettings compute, boolean fates) {
        this(cells, block, block, capacity, positionRange, compute, fates);
    }

    /** Without a record of fates, too. */
    public CacheOptions(int cells, int block, int capacity, int positionRange, ComputeSettings compute) {
        this(cells, block, capacity, positionRange, compute, false);
    }

    /** A budget of cells, the rest as llama.cpp has it with flash attention off. */
    public static CacheOptions of(int cells, int block) {
        return new CacheOptions(cells, block, 0, 0, ComputeSettings.usual());
    }

    /** No limit: cells for the whole text. */
    public static CacheOptions unlimited(int capacity, int block) {
        return new CacheOptions(0, block, capacity, 0, ComputeSettings.usual());
    }

    /** Cells to ask llama.cpp for. */
    public int wanted() {
        return cells == 0 ? capacity : cells + promptBlock;
    }

    /** Cells that llama.cpp allocates: those, rounded up. */
    public int allocated() {
        return LlamaCache.padded(wanted());
    }

    /**
     * The same with as many cells as can hold text between blocks: llama.cpp rounds what it allocates up to a multiple
     * of 256, and what the larger block leaves of that costs nothing more. 410 cells and blocks of 128 are 768 cells,
     * so that 640 can stay. Without a limit, the same.
     *
     * @throws KvmergeException.Usage if a position range does not hold so many
     */
    public CacheOptions filled() {
        return cells == 0
                ? this
                : new CacheOptions(
                        allocated() - promptBlock, block, promptBlock, capacity, positionRange, compute, fates);
    }

    /** The same with prompts in other blocks. */
    public CacheOptions withPromptBlock(int n) {
        return new CacheOptions(cells, block, n, capacity, positionRange, compute, fates);
    }

    /** The same within so many positions. */
    public CacheOptions withPositionRange(int positions) {
        return new CacheOptions(cells, block, promptBlock, capacity, positions, compute, fates);
    }

    /**
     * The position range of a model where none is given: half of the positions that it was trained on. Few of its
     * training texts have distances as long as the longest: Qwen2.5-Coder-0.5B, trained on 32,768, breaks where what is
     * kept is spread over 24,576 (docs/performance.md, "Texts without end").
     *
     * @param trained positions that the model was trained on
     * @param cells that stay, which the range has to hold
     * @param room positions to leave for a block at least
     */
    public static int positionRange(int trained, int cells, int room) {
        return Math.max(cells, Math.min(trained / 2, trained - room));
    }

    /** The old name of {@link #withPositionRange}. */
    @Deprecated(since = "0.2", forRemoval = true)
    public CacheOptions withSpan(int positions) {
        return withPositionRange(positions);
    }

    /** The same, which records what became of each token. */
    public CacheOptions withFates() {
        return new CacheOptions(cells, block, promptBlock, capacity, positionRange, compute, true);
    }

    /** The same, computed otherwise. */
    public CacheOptions with(ComputeSettings settings) {
        return new CacheOptions(cells, block, promptBlock, capacity, positionRange, settings, fates);
    }
}
