package dev.kvmerge.eval;

import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.SequenceGroup;
import dev.kvmerge.cache.SequenceGroup.Logits;
import dev.kvmerge.cache.SequenceGroup.Part;
import dev.kvmerge.eval.SpeedBench.Row;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Context;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Model;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.stream.IntStream;

/**
 * How fast several sequences are generated together, in one llama.cpp context, beside one. Numbers of sequences take
 * turns; a figure is a ratio within a turn, then the median over turns.
 */
public final class SequencesBench {
    /**
     * What to time.
     *
     * @param prompts prompt lengths, tokens, of each sequence
     * @param generated tokens generated after it in each sequence
     * @param repetitions turns
     * @param block tokens of a sequence between two compressions
     * @param promptBlock the same of a prompt, a block and more
     * @param compute how llama.cpp computes
     * @param clock what is timed
     * @param sequences numbers of sequences; the first is what the others are compared with
     */
    public record Setup(
            int[] prompts,
            int generated,
            int repetitions,
            int block,
            int promptBlock,
            ComputeSettings compute,
            Clock clock,
            int[] sequences) {}

    private final Model model;
    private final Setup setup;
    private final List<Cache> caches;
    private final int[] tokens;

    /**
     * @param caches one that is full is llama.cpp alone, without an eval callback
     * @param tokens a text, at least the longest prompt and what is generated after it; each sequence has the same
     * @throws dev.kvmerge.KvmergeException if the model cannot have one of the caches
     */
    public SequencesBench(Model model, Setup setup, List<Cache> caches, int[] tokens) {
        this.model = model;
        this.setup = setup;
        this.caches = caches;
        this.tokens = tokens;
        for (Cache cache : caches) {
            for (int prompt : setup.prompts()) {
                CacheChecks.checkModel(model, cache.strategy(), cache.cells(prompt), false);
            }
        }
    }

    /**
     * Times everything: a row for each prompt, cache and number of sequences. Its speed is all sequences' tokens a
     * second over those of the first number.
     *
     * @param progress is told what is being timed
     * @param cancelled asked before each run
     * @throws Experiment.Cancelled if it says so
     */
    public List<Row> run(Consumer<String> progress, BooleanSupplier cancelled) {
        List<Row> rows = new ArrayList<>();
        int[] counts = setup.sequences();
        for (int prompt : setup.prompts()) {
            for (Cache cache : caches) {
                Timing[][] timings = new Timing[counts.length][setup.repetitions()];
                for (int turn = -1; turn < setup.repetitions(); turn++) { // the first warms up
                    for (int i = 0; i < counts.length; i++) {
                        if (cancelled.getAsBoolean()) {
                            throw new Experiment.Cancelled();
                        }
                        int which = Math.floorMod(i + turn, counts.length);
                        progress.accept("pp" + prompt + ", turn " + (turn + 1) + ": " + cache.name() + ", "
                                + counts[which] + " sequences");
                        if (turn < 0) {
                            time(cache, prompt, 1, Math.min(setup.generated(), 2));
                            break;
                        }
                        timings[which][turn] = time(cache, prompt, counts[which], setup.generated());
                    }
                }
                for (int i = 0; i < counts.length; i++) {
                    rows.add(row(cache, prompt, counts[i], timings[i], timings[0]));
                }
            }
        }
        return rows;
    }

    /** Tokens a second of all sequences; what kvmerge takes as a share of llama.cpp's time. */
    private record Timing(double tokensPerSecond, double overhead) {}

    private Row row(Cache cache, int prompt, int n, Timing[] own, Timing[] first) {
        double[] samples =
                Arrays.stream(own).mapToDouble(Timing::tokensPerSecond).toArray();
        double[] ratios = IntStream.range(0, own.length)
                .mapToDouble(turn -> own[turn].tokensPerSecond / first[turn].tokensPerSecond)
                .toArray();
        return new Row(
                cache.name(),
                cache.saved(prompt),
                cache.cells(prompt),
                setup.compute().flashAttention(),
                "tg" + setup.generated() + " x " + n + " @ " + prompt,
                SpeedBench.median(samples),
                SpeedBench.median(ratios),
                Arrays.stream(ratios).min().orElseThrow(),
                Arrays.stream(ratios).max().orElseThrow(),
                cache.isFull()
                        ? null
                        : SpeedBench.median(
                                Arrays.stream(own).mapToDouble(Timing::overhead).toArray()),
                samples);
    }

    private Timing time(Cache cache, int prompt, int n, int generated) {
        return cache.isFull() ? timePlain(prompt, n, generated) : timeGroup(cache, prompt, n, generated);
    }

    private Timing timePlain(int prompt, int n, int generated) {
        ContextOptions options =
                ContextOptions.of(prompt + generated, Math.max(setup.promptBlock(), n), n, setup.compute());
        try (Context context = new Context(model, options, null)) {
            for (int sequence = 0; sequence < n; sequence++) {
                for (int at = 0; at < prompt; at += setup.promptBlock()) {
                    int first = at;
                    int of = sequence;
                    int length = Math.min(setup.promptBlock(), prompt - at);
                    context.decode(length, i -> new Context.Item(tokens[first + i], first + i, of, i == length - 1));
                }
            }
            long start = setup.clock().nanoseconds();
            for (int i = 0; i < generated; i++) {
                int position = prompt + i;
                context.decode(n, sequence -> new Context.Item(tokens[position], position, sequence, true));
            }
            return new Timing((double) n * generated / seconds(start), 0);
        }
    }

    private Timing timeGroup(Cache cache, int prompt, int n, int generated) {
        int block = setup.promptBlock();
        CacheOptions options = CacheOptions.of(cache.cells(prompt), setup.block())
                .withPromptBlock(block)
                .with(setup.compute());
        try (SequenceGroup group = new SequenceGroup(model, cache.strategy(), options, n)) {
            for (int at = 0; at < prompt; at += block) {
                decode(group, Arrays.copyOfRange(tokens, at, Math.min(prompt, at + block)));
            }
            flush(group);
            long ours = overhead(group);
            long start = setup.clock().nanoseconds();
            for (int i = 0; i < generated; i++) {
                decode(group, new int[] {tokens[prompt + i]});
            }
            flush(group);
            double seconds = seconds(start);
            double overhead = (overhead(group) - ours) / 1e9;
            return new Timing(n * generated / seconds, overhead / (seconds - overhead));
        }
    }

    private double seconds(long start) {
        return (setup.clock().nanoseconds() - start) / 1e9;
    }

    private static void decode(SequenceGroup group, int[] next) {
        group.decode(IntStream.range(0, group.size())
                        .mapToObj(sequence -> new Part(sequence, next, Logits.LAST))
                        .toList())
                .check();
    }

    private static void flush(SequenceGroup group) {
        for (int i = 0; i < group.size(); i++) {
            group.sequence(i).flush();
        }
    }

    private static long overhead(SequenceGroup group) {
        return IntStream.range(0, group.size())
                .mapToLong(i -> group.sequence(i).timings().overhead())
                .sum();
    }
}
