package dev.kvmerge.cache;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;

/**
 * How to make a compressed context.
 *
 * @param cells cells that stay after each block; 0 for no limit (then {@code capacity} is what the whole text needs)
 * @param block most tokens decoded between two compressions
 * @param capacity cells to allocate when there is no limit; ignored otherwise, where it is cells + block
 * @param threads CPU threads
 * @param ubatch most tokens computed at once
 * @param span 0: positions grow with the text. Else at most so many are used: once the text is longer, each compression moves the newest cell
 *     back to the last of them and the others with it, and those that come to the start are numbered 0, 1, 2, ..., their keys rotated to match.
 *     So a text may be longer than the positions that the model was trained on. A span of {@code cells} is Xiao et al.'s (2024)
 */
public record CacheOptions(
        int cells,
        int block,
        int capacity,
        int threads,
        int ubatch,
        FlashAttention flashAttention,
        CellType keyType,
        CellType valueType,
        int span) {
    public CacheOptions {
        if (block <= 0) {
            throw new KvmergeException.Usage("the block (--block) must be positive, not " + block);
        }
        if (cells < 0 || (cells == 0 && capacity <= 0)) {
            throw new KvmergeException.Usage(
                    "the number of cells (--cells) must be positive, not " + (cells == 0 ? capacity : cells));
        }
        if (span < 0 || (span > 0 && span < cells)) {
            throw new KvmergeException.Usage(
                    "the span (--span) of " + span + " positions must hold the " + cells + " cells");
        }
    }

    /** A budget of cells, the rest as llama.cpp has it with flash attention off. */
    public static CacheOptions of(int cells, int block) {
        return new CacheOptions(
                cells,
                block,
                0,
                Runtime.getRuntime().availableProcessors(),
                Math.min(512, block),
                FlashAttention.OFF,
                CellType.F16,
                CellType.F16,
                0);
    }

    /** No limit: cells for the whole text. */
    public static CacheOptions unlimited(int capacity, int block) {
        return of(capacity, block).sized(0, block, capacity);
    }

    public CacheOptions withSpan(int positions) {
        return new CacheOptions(cells, block, capacity, threads, ubatch, flashAttention, keyType, valueType, positions);
    }

    /** The same for another number of cells, block and capacity. */
    public CacheOptions sized(int newCells, int newBlock, int newCapacity) {
        return new CacheOptions(
                newCells, newBlock, newCapacity, threads, ubatch, flashAttention, keyType, valueType, span);
    }

    public CacheOptions withThreads(int n) {
        return new CacheOptions(cells, block, capacity, n, ubatch, flashAttention, keyType, valueType, span);
    }

    public CacheOptions withUbatch(int n) {
        return new CacheOptions(cells, block, capacity, threads, n, flashAttention, keyType, valueType, span);
    }

    public CacheOptions withFlashAttention(FlashAttention f) {
        return new CacheOptions(cells, block, capacity, threads, ubatch, f, keyType, valueType, span);
    }

    public CacheOptions withCellTypes(CellType k, CellType v) {
        return new CacheOptions(cells, block, capacity, threads, ubatch, flashAttention, k, v, span);
    }
}
