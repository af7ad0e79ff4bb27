package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.llama.CellMemory;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.LlamaCache;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Method;
import java.util.List;
import java.util.Locale;

/**
 * What --kv-mib chooses: the types of the cells, and how many stay.
 *
 * @param types of the K and V cells
 * @param cells that stay, of each sequence
 */
record KvMemory(CellTypes types, int cells) {
    /**
     * The pairs that lose least at a given memory, the finest first. Q5_1 values cost little beside the cells that they
     * make room for (docs/performance.md, at equal memory).
     */
    private static final List<CellTypes> BEST =
            List.of(new CellTypes(CellType.Q8_0, CellType.Q8_0), new CellTypes(CellType.Q8_0, CellType.Q5_1));

    private static final double MOST_MIB = 1 << 24;

    /** Refuses what is no memory. */
    static void check(double mib) {
        if (!(mib > 0 && mib <= MOST_MIB)) {
            throw new KvmergeException.Usage("--kv-mib must be more than 0 and at most 16777216, not " + mib);
        }
    }

    /**
     * The types that lose least: of the best pairs the one that most cells of fit, or the finest of those. F16 where
     * llama.cpp takes no quantised cells.
     *
     * @param mib for each sequence
     * @param asked for with -fa, or null
     */
    static CellTypes best(Model model, double mib, FlashAttention asked) {
        boolean fits = model.headSizesAreMultiplesOf(CellType.BLOCK) && !model.flashAttentionAborts();
        if (!fits || asked == FlashAttention.OFF) {
            return CellTypes.F16;
        }
        CellTypes best = BEST.getFirst();
        for (CellTypes types : BEST) {
            if (cells(model, types, mib) > cells(model, best, mib)) {
                best = types;
            }
        }
        return best;
    }

    private static int cells(Model model, CellTypes types, double mib) {
        return CellMemory.mostCells(model, types, mib * CellMemory.MIB);
    }

    /**
     * The most cells of a type that some memory holds beside a block, for each of some sequences.
     *
     * @throws KvmergeException.Usage if those are fewer than the method needs
     */
    static KvMemory of(Model model, CellTypes types, double mib, int block, int sequences, Method method) {
        int cells = cells(model, types, mib / sequences) - block;
        int fewest = Math.max(1, method.fewestCells(block));
        if (cells < fewest) {
            double least = LlamaCache.padded(fewest + block) * CellMemory.ofCell(model, types) * sequences;
            throw new KvmergeException.Usage(String.format(
                    Locale.ROOT,
                    "--kv-mib %s holds %s cells in %s beside the block of %d%s, and %s needs %d: give %.1f or more, or"
                            + " a smaller --block",
                    number(mib),
                    cells <= 0 ? "no" : cells,
                    types.text(),
                    block,
                    sequences == 1 ? "" : " of each of " + sequences + " sequences",
                    method.name(),
                    fewest,
                    Math.ceil(least / CellMemory.MIB * 10) / 10));
        }
        return new KvMemory(types, cells);
    }

    /** What is allocated, in a sentence. */
    String text(Model model, double mib, int block, int sequences) {
        CacheOptions options = CacheOptions.of(cells, block);
        return String.format(
                Locale.ROOT,
                "kvmerge: --kv-mib %s: %,d cells in %s and a block of %d%s, which allocates %.1f MiB%s; kvmerge's"
                        + " tables take %.1f MiB beside",
                number(mib),
                cells,
                types.text(),
                block,
                sequences == 1 ? "" : ", for each of " + sequences + " sequences",
                options.allocated() * CellMemory.ofCell(model, types) * sequences / CellMemory.MIB,
                model.slidingWindow() > 0 ? " beside the cells of layers with sliding windows" : "",
                CacheChecks.tableBytes(model, options) * sequences / CellMemory.MIB);
    }

    private static String number(double mib) {
        return mib == Math.rint(mib) ? Long.toString((long) mib) : Double.toString(mib);
    }
}
