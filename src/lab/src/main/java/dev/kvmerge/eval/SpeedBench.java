package dev.kvmerge.eval;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Model;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/**
 * How fast a text is read and continued, by llama.cpp alone and through compressed caches. The caches take turns, so
 * that a machine that slows down slows all of them; a figure is a ratio within a turn, then the median over turns.
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
     * @param compute how llama.cpp computes
     */
    public record Setup(int[] prompts, int generated, int repetitions, int block, ComputeSettings compute) {}

    /**
     * A cache at a test, over all turns.
     *
     * @param test "pp512": a prompt of 512 tokens; "tg32 @ 512": 32 tokens after it
     * @param cells that stay; of llama.cpp alone, all
     * @param tokensPerSecond median
     * @param speed median over turns of its speed over llama.cpp's in the same turn; 1 for llama.cpp
     * @param slowest smallest of those ratios
     * @param fastest largest
     * @param overhead observing, planning and applying, as a share of the time in llama.cpp; null for llama.cpp alone
     */
    public record Row(
            String cache,
            double compression,
            int cells,
            String test,
            double tokensPerSecond,
            double speed,
            double slowest,
            double fastest,
            Double overhead,
            double[] samples) {}

    private record Timing(double prompt, double generation, double overhead, double generationOverhead) {}

    private final Model model;
    private final Setup setup;
    private final List<Cache> caches;
    private final int[] tokens;

    /**
     * @param caches the first is llama.cpp alone, without an eval callback
     * @param tokens a text, at least the longest prompt and what is generated after it
     */
    public SpeedBench(Model model, Setup setup, List<Cache> caches, int[] tokens) {
        if (!caches.getFirst().isFull()) {
            throw new IllegalArgumentException("the first cache is what the others are compared with: llama.cpp alone");
        }
        this.model = model;
        this.setup = setup;
        this.caches = caches;
        this.tokens = tokens;
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
            Timing[][] timings = new Timing[caches.size()][setup.repetitions()];
            for (int turn = -1; turn < setup.repetitions(); turn++) { // the first warms up
                for (int i = 0; i < caches.size(); i++) {
                    if (cancelled.getAsBoolean()) {
                        throw new Experiment.Cancelled();
                    }
                    int which = Math.floorMod(i + turn, caches.size()); // each goes first in its turn
                    progress.accept("pp" + prompt + ", turn " + (turn + 1) + ": "
                            + caches.get(which).name());
                    Timing timing = time(caches.get(which), turn < 0 ? Math.min(prompt, 2 * setup.block()) : prompt);
                    if (turn >= 0) {
                        timings[which][turn] = timing;
                    }
                }
            }
            for (int i = 0; i < caches.size(); i++) {
                rows.add(row(i, prompt, timings, false));
            }
            for (int i = 0; i < caches.size() && setup.generated() > 0; i++) {
                rows.add(row(i, prompt, timings, true));
            }
        }
        return rows;
    }

    private Row row(int which, int prompt, Timing[][] timings, boolean generation) {
        Cache cache = caches.get(which);
        int n = setup.repetitions();
        int count = generation ? setup.generated() : prompt;
        double[] samples = new double[n];
        double[] ratios = new double[n];
        double[] overheads = new double[n];
        for (int turn = 0; turn < n; turn++) {
            Timing own = timings[which][turn];
            Timing plain = timings[0][turn];
            double seconds = generation ? own.generation : own.prompt;
            samples[turn] = count / seconds;
            ratios[turn] = (generation ? plain.generation : plain.prompt) / seconds;
            overheads[turn] = generation ? own.generationOverhead : own.overhead;
        }
        return new Row(
                cache.name(),
                cache.compression(),
                cache.cells(prompt),
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

    private Timing time(Cache cache, int prompt) {
        return cache.isFull() ? timePlain(prompt) : timeCompressed(cache, prompt);
    }

    private Timing timePlain(int prompt) {
        ContextOptions options = ContextOptions.of(prompt + setup.generated(), PLAIN_BATCH, setup.compute());
        try (Context context = new Context(model, options, null)) {
            long start = System.nanoTime();
            for (int at = 0; at < prompt; at += PLAIN_BATCH) {
                context.decode(Arrays.copyOfRange(tokens, at, Math.min(prompt, at + PLAIN_BATCH)), at, false);
            }
            long read = System.nanoTime();
            for (int i = 0; i < setup.generated(); i++) {
                context.decode(new int[] {tokens[prompt + i]}, prompt + i, false);
            }
            return new Timing((read - start) / 1e9, (System.nanoTime() - read) / 1e9, 0, 0);
        }
    }

    private Timing timeCompressed(Cache cache, int prompt) {
        int block = setup.block();
        CacheOptions options = CacheOptions.of(cache.cells(prompt), block).with(setup.compute());
        try (CompressedContext context = new CompressedContext(model, cache.strategy(), options)) {
            long start = System.nanoTime();
            for (int at = 0; at < prompt; at += block) {
                context.decode(Arrays.copyOfRange(tokens, at, Math.min(prompt, at + block)), false);
            }
            context.flush();
            long read = System.nanoTime();
            CompressedContext.Timings t = context.timings();
            long ours = t.overhead();
            long decode = t.decode();
            for (int i = 0; i < setup.generated(); i++) {
                context.decode(new int[] {tokens[prompt + i]}, false);
            }
            context.flush();
            long end = System.nanoTime();
            double generationOverhead = (double) (t.overhead() - ours) / (t.decode() - decode);
            return new Timing((read - start) / 1e9, (end - read) / 1e9, (double) ours / decode, generationOverhead);
        }
    }
}
