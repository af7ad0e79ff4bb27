package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.Planner;
import dev.kvmerge.llama.CellMemory;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.LlamaCache;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Method;
import java.util.Collection;
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
     * What is to fit into the memory.
     *
     * @param mib of all sequences together
     * @param block of each sequence, the largest: a prompt's
     */
    record Room(Model model, double mib, int block, int sequences, ComputeSettings compute) {
        /**
         * The most cells of each sequence, its block among them, that fit beside the windows of layers that have some.
         */
        int cells(CellTypes types) {
            return CellMemory.mostCells(model, types, mib / sequences * CellMemory.MIB, block * sequences, compute);
        }

        /** Bytes that a sequence takes with so many cells allocated. */
        double bytes(CellTypes types, int allocated) {
            return allocated * CellMemory.ofCell(model, types) + windows(types);
        }

        private double windows(CellTypes types) {
            return CellMemory.ofWindows(model, types, block * sequences, compute);
        }
    }

    /**
     * The types that lose least: of the best pairs the one that most cells of fit, or the finest of those. F16 where
     * llama.cpp takes no quantised cells, or flash attention is off.
     */
    static CellTypes best(Room room) {
        boolean fits = room.model.headSizesAreMultiplesOf(CellType.BLOCK) && !room.model.flashAttentionAborts();
        if (!fits || room.compute.flashAttention() == FlashAttention.OFF) {
            return CellTypes.F16;
        }
        CellTypes best = BEST.getFirst();
        for (CellTypes types : BEST) {
            if (room.cells(types) > room.cells(best)) {
                best = types;
            }
        }
        return best;
    }

    /**
     * The most cells of a type that the memory holds beside a block, for each sequence.
     *
     * @throws KvmergeException.Usage if those are fewer than the method or the model's windows need
     */
    static KvMemory of(Room room, CellTypes types, Method method) {
        int cells = room.cells(types) - room.block;
        int window = room.model.slidingWindow();
        int fewest = Math.max(1, Math.max(window, method.fewestCells(room.block)));
        if (cells < fewest) {
            double least = room.bytes(types, LlamaCache.padded(fewest + room.block)) * room.sequences;
            throw new KvmergeException.Usage(String.format(
                    Locale.ROOT,
                    "--kv-mib %s holds %s cells in %s beside the block of %d%s, and %s needs %d: give %.1f or more, or"
                            + " a smaller --block or --prompt-block",
                    number(room.mib),
                    cells <= 0 ? "no" : cells,
                    types.text(),
                    room.block,
                    room.sequences == 1 ? "" : " of each of " + room.sequences + " sequences",
                    fewest == window ? "the model's sliding window" : method.name(),
                    fewest,
                    Math.ceil(least / CellMemory.MIB * 10) / 10));
        }
        return new KvMemory(types, cells);
    }

    /**
     * What is allocated, in a sentence.
     *
     * @param options of a sequence, with these cells
     * @param planners one of which it is for; the tables are those of the one that has most
     */
    String text(Room room, CacheOptions options, Collection<? extends Planner> planners) {
        long tables = planners.stream()
                .mapToLong(planner -> CacheChecks.tableBytes(room.model, planner, options))
                .max()
                .orElse(0);
        return String.format(
                Locale.ROOT,
                "kvmerge: --kv-mib %s: %,d cells in %s and a block of %d%s, which allocates %.1f MiB%s; kvmerge's"
                        + " tables take %.1f MiB beside",
                number(room.mib),
                cells,
                types.text(),
                room.block,
                room.sequences == 1 ? "" : ", for each of " + room.sequences + " sequences",
                room.bytes(types, options.allocated()) * room.sequences / CellMemory.MIB,
                room.model.slidingWindow() > 0 ? " with the sliding windows of its layers" : "",
                tables * room.sequences / CellMemory.MIB);
    }

    private static String number(double mib) {
        return mib == Math.rint(mib) ? Long.toString((long) mib) : Double.toString(mib);
    }
}
