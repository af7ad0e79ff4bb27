package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.cache.Timings;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Strategy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/**
 * How fast a text is read and continued, by llama.cpp alone and through compressed caches. The caches take turns, so
 * that a machine that slows down slows all of them; a figure is a ratio within a turn, then the median over turns. Each
 * cache runs with each setting of flash attention that it can have, and of a phase its fastest setting counts: what a
 * user of llama.cpp alone would have is the best of both.
 */
public final class SpeedBench {
    /** Most tokens that llama.cpp alone is handed at once, as llama-bench does. */
    private static final int PLAIN_BATCH = 512;

    /**
     * What to time.
     *
     * @param prompts prompt lengths, tokens
     * @param generated tokens generated after each prompt, one at a time; 0 for none
     * @param repetitions turns
     * @param block tokens between two compressions
     * @param promptBlock the same of a prompt, a block and more
     * @param compute how llama.cpp computes, but for flash attention
     * @param clock what is timed
     * @param plain settings of flash attention that llama.cpp alone runs with
     * @param ours those that compressed caches run with
     */
    public record Setup(
            int[] prompts,
            int generated,
            int repetitions,
            int block,
            int promptBlock,
            ComputeSettings compute,
            Clock clock,
            List<FlashAttention> plain,
            List<FlashAttention> ours) {}

    /**
     * A cache at a test, over all turns.
     *
     * @param flashAttention the setting that was fastest at this test, whose figures these are
     * @param test "pp512": a prompt of 512 tokens; "tg32 @ 512": 32 tokens after it
     * @param cells that stay; of llama.cpp alone, all
     * @param tokensPerSecond median
     * @param speed median over turns of its speed over llama.cpp's at its fastest setting, in the same turn
     * @param slowest smallest of those ratios
     * @param fastest largest
     * @param overhead observing, planning and applying, as a share of the time in llama.cpp; null for llama.cpp alone
     */
    public record Row(
            String cache,
            double compression,
            int cells,
            FlashAttention flashAttention,
            String test,
            double tokensPerSecond,
            double speed,
            double slowest,
            double fastest,
            Double overhead,
            double[] samples) {}

    /** A cache with a setting: what takes turns. */
    private record Contender(Cache cache, FlashAttention flashAttention) {}

    private record Timing(double prompt, double generation, double overhead, double generationOverhead) {
        double of(boolean phase) {
            return phase ? generation : prompt;
        }
    }

    private final Model model;
    private final Setup setup;
    private final List<Cache> caches;
    private final List<Contender> contenders = new ArrayList<>();
    private final int[] tokens;

    /**
     * @param caches the first is llama.cpp alone, without an eval callback
     * @param tokens a text, at least the longest prompt and what is generated after it
     * @throws KvmergeException if the model cannot have one of the caches
     */
    public SpeedBench(Model model, Setup setup, List<Cache> caches, int[] tokens) {
        if (!caches.getFirst().isFull()) {
            throw new IllegalArgumentException("the first cache is what the others are compared with: llama.cpp alone");
        }
        this.model = model;
        this.setup = setup;
        this.caches = caches;
        this.tokens = tokens;
        for (Cache cache : caches) {
            for (int prompt : setup.prompts()) {
                CacheChecks.checkModel(model, cache.strategy(), cache.cells(prompt), false);
            }
            for (FlashAttention setting : cache.isFull() ? setup.plain() : setup.ours()) {
                contenders.add(new Contender(cache, setting));
            }
        }
    }

    /**
     * Times everything.
     *
     * @param progress is told what is being timed
     * @param cancelled asked before each run
     * @throws Experiment.Cancelled if it says so
     */
    public List<Row> run(Consumer<String> progress, BooleanSupplier cancelled) {
        List<Row> rows = new ArrayList<>();
        for (int prompt : setup.prompts()) {
            Timing[][] timings = new Timing[contenders.size()][setup.repetitions()];
            for (int turn = -1; turn < setup.repetitions(); turn++) { // the first warms up
                for (int i = 0; i < contenders.size(); i++) {
                    if (cancelled.getAsBoolean()) {
                        throw new Experiment.Cancelled();
                    }
                    int which = Math.floorMod(i + turn, contenders.size()); // each goes first in its turn
                    Contender contender = contenders.get(which);
                    progress.accept("pp" + prompt + ", turn " + (turn + 1) + ": "
                            + contender.cache().name() + " -fa "
                            + contender.flashAttention().name().toLowerCase(Locale.ROOT));
                    if (turn < 0) {
                        warmUp(contender, prompt);
                    } else {
                        timings[which][turn] =
                                time(contender, prompt, contender.cache().cells(prompt));
                    }
                }
            }
            for (boolean generation : setup.generated() > 0 ? new boolean[] {false, true} : new boolean[] {false}) {
                for (Cache cache : caches) {
                    rows.add(fastest(cache, prompt, timings, generation));
                }
            }
        }
        return rows;
    }

    /** The row of the setting that a cache is fastest with. */
    private Row fastest(Cache cache, int prompt, Timing[][] timings, boolean generation) {
        Row best = null;
        for (int i = 0; i < contenders.size(); i++) {
            if (contenders.get(i).cache() == cache) {
                Row row = row(i, prompt, timings, generation);
                best = best == null || row.tokensPerSecond() > best.tokensPerSecond() ? row : best;
            }
        }
        return best;
    }

    /** Of llama.cpp alone, the setting with the least median time: what all speeds of a phase are ratios to. */
    private int plain(Timing[][] timings, boolean generation) {
        int best = 0; // the first contenders are llama.cpp's
        for (int i = 1; i < setup.plain().size(); i++) {
            best = seconds(timings[i], generation) < seconds(timings[best], generation) ? i : best;
        }
        return best;
    }

    private static double seconds(Timing[] turns, boolean generation) {
        return median(Arrays.stream(turns).mapToDouble(t -> t.of(generation)).toArray());
    }

    private Row row(int which, int prompt, Timing[][] timings, boolean generation) {
        Contender contender = contenders.get(which);
        Cache cache = contender.cache();
        Timing[] plain = timings[plain(timings, generation)];
        int n = setup.repetitions();
        int count = generation ? setup.generated() : prompt;
        double[] samples = new double[n];
        double[] ratios = new double[n];
        double[] overheads = new double[n];
        for (int turn = 0; turn < n; turn++) {
            Timing own = timings[which][turn];
            samples[turn] = count / own.of(generation);
            ratios[turn] = plain[turn].of(generation) / own.of(generation);
            overheads[turn] = generation ? own.generationOverhead : own.overhead;
        }
        return new Row(
                cache.name(),
                cache.saved(prompt),
                cache.cells(prompt),
                contender.flashAttention(),
                generation ? "tg" + setup.generated() + " @ " + prompt : "pp" + prompt,
                median(samples),
                median(ratios),
                Arrays.stream(ratios).min().orElseThrow(),
                Arrays.stream(ratios).max().orElseThrow(),
                cache.isFull() ? null : median(overheads),
                samples);
    }

    /** The middle one; of an even number, the mean of the two. */
    public static double median(double[] x) {
        double[] sorted = x.clone();
        Arrays.sort(sorted);
        int n = sorted.length;
        return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
    }

    /** Reads two blocks of a prompt, after what fills as few cells as the cache can have. */
    private void warmUp(Contender contender, int prompt) {
        Cache cache = contender.cache();
        int cells = 0;
        if (!cache.isFull()) {
            int fewest = Math.max(cache.strategy().fewestCells(setup.promptBlock()), model.slidingWindow());
            cells = Math.min(cache.cells(prompt), Math.max(fewest, cache.cells(setup.promptBlock())));
        }
        time(contender, (int) Math.min(prompt, cells + 2L * setup.promptBlock()), cells);
    }

    private Timing time(Contender contender, int prompt, int cells) {
        ComputeSettings compute = setup.compute().withFlashAttention(contender.flashAttention());
        return contender.cache().isFull()
                ? timePlain(prompt, compute)
                : timeCompressed(contender.cache().strategy(), cells, prompt, compute);
    }

    private Timing timePlain(int prompt, ComputeSettings compute) {
        ContextOptions options = ContextOptions.of(prompt + setup.generated(), PLAIN_BATCH, compute);
        try (Context context = new Context(model, options, null)) {
            long start = setup.clock().nanoseconds();
            for (int at = 0; at < prompt; at += PLAIN_BATCH) {
                context.decode(Arrays.copyOfRange(tokens, at, Math.min(prompt, at + PLAIN_BATCH)), at, false);
            }
            long read = setup.clock().nanoseconds();
            for (int i = 0; i < setup.generated(); i++) {
                context.decode(new int[] {tokens[prompt + i]}, prompt + i, false);
            }
            return new Timing((read - start) / 1e9, (setup.clock().nanoseconds() - read) / 1e9, 0, 0);
        }
    }

    private Timing timeCompressed(Strategy strategy, int cells, int prompt, ComputeSettings compute) {
        int block = setup.promptBlock();
        CacheOptions options =
                CacheOptions.of(cells, setup.block()).withPromptBlock(block).with(compute);
        try (CompressedContext context = new CompressedContext(model, strategy, options)) {
            long start = setup.clock().nanoseconds();
            for (int at = 0; at < prompt; at += block) {
                context.decode(Arrays.copyOfRange(tokens, at, Math.min(prompt, at + block)), false);
            }
            context.flush();
            long read = setup.clock().nanoseconds();
            Timings t = context.timings();
            long ours = t.overhead();
            long decode = t.decode();
            for (int i = 0; i < setup.generated(); i++) {
                context.decode(new int[] {tokens[prompt + i]}, false);
            }
            context.flush();
            long end = setup.clock().nanoseconds();
            double generationOverhead = (double) (t.overhead() - ours) / (t.decode() - decode);
            return new Timing((read - start) / 1e9, (end - read) / 1e9, (double) ours / decode, generationOverhead);
        }
    }
}
