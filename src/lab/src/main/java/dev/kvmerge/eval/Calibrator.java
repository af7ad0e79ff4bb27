package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.CellStats;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.cache.Parallel;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BooleanSupplier;
import java.util.function.IntConsumer;

/**
 * Makes a {@link Calibration}: reads texts once through the full cache, notes at several points what was known of a
 * token and what attention it got from then on, and fits one to the other for each layer and KV head. What was known
 * and what came are the same power of the attention, so that one reading shows both.
 */
public final class Calibrator {
    /** Factor on attention received at each block; entropy-merged's. */
    public static final double DECAY = 0.9;

    /** The power of the attention, so far and to come: it asks for cells that some query will need much. */
    public static final double MASS_POWER = 1.5;

    private static final int BLOCK = 128;
    /** Fewest tokens computed at once: a block. */
    public static final int FEWEST_UBATCH = BLOCK;

    private static final int QUERIES = BLOCK / 2; // of a block, that are looked at: with flash attention each costs
    private static final int FIRST_POINT = 3; // blocks before the first look, and
    private static final int POINTS_APART = 3; // from one to the next
    private static final int LAST_BLOCKS = 3; // too near the end to see what comes
    private static final int SINKS = 4;
    private static final int NEWEST = 64; // tokens that nobody would drop yet
    private static final int SAMPLE = 4; // one token of so many is looked at
    private static final double MOST = 10; // of a piece's means, that a token's attention to come counts for

    /** Fewest tokens of a piece. */
    public static final int FEWEST_TOKENS = (FIRST_POINT + LAST_BLOCKS + 2) * BLOCK;

    private final Model model;
    private final Shape shape;
    private final ComputeSettings compute;
    private final Experiment.Listener listener;
    private final BooleanSupplier cancelled;

    /**
     * @param compute how the contexts to read with compute
     * @param listener told of progress: tokens of all pieces
     */
    public Calibrator(Model model, ComputeSettings compute, Experiment.Listener listener, BooleanSupplier cancelled) {
        this.model = model;
        this.shape = model.shape();
        this.compute = compute;
        this.listener = listener;
        this.cancelled = cancelled;
    }

    /** What was seen in one piece of text, for sampled tokens at several points; [pair][point and token]. */
    private static final class Seen {
        private final int[] point; // [point and token]: blocks read
        private final int[] token; // position
        private final float[][] rates; // 3 a sample: own, before, after
        private final float[][] later; // attention to MASS_POWER, a query
        private final float[][] keys; // [pair][token / SAMPLE][dimension], before rotation
        private final float[][] norms; // [pair][token / SAMPLE]

        Seen(int pairs, int tokens) {
            List<int[]> samples = new ArrayList<>();
            for (int b = FIRST_POINT; b < tokens / BLOCK - LAST_BLOCKS; b += POINTS_APART) {
                for (int t = SAMPLE - 1; t < (b + 1) * BLOCK - NEWEST; t += SAMPLE) {
                    if (t >= SINKS) {
                        samples.add(new int[] {b, t});
                    }
                }
            }
            point = samples.stream().mapToInt(s -> s[0]).toArray();
            token = samples.stream().mapToInt(s -> s[1]).toArray();
            rates = new float[pairs][3 * point.length];
            later = new float[pairs][point.length];
            keys = new float[pairs][];
            norms = new float[pairs][tokens / SAMPLE];
        }

        int keyDimension() {
            return keys[0].length / norms[0].length;
        }

        /** The samples that are taken after a block. */
        void samples(int block, IntConsumer look) {
            for (int i = 0; i < point.length; i++) {
                if (point[i] == block) {
                    look.accept(i);
                }
            }
        }
    }

    /**
     * Reads the pieces and fits.
     *
     * @param name for the record: the texts
     * @param pieces tokens, {@link #FEWEST_TOKENS} at least each
     * @throws Experiment.Cancelled if asked to stop
     */
    public Calibration fit(String name, List<int[]> pieces) {
        List<Seen> seen = new ArrayList<>();
        int before = 0;
        for (int[] piece : pieces) {
            if (piece.length < FEWEST_TOKENS) {
                throw new KvmergeException.Usage("a piece of " + piece.length + " tokens is too short to calibrate on: "
                        + FEWEST_TOKENS + " and more");
            }
            seen.add(look(Arrays.copyOf(piece, piece.length / BLOCK * BLOCK), before));
            before += piece.length;
        }
        float[][] weights = new float[shape.pairs()][];
        Parallel.each(weights.length, pair -> {
            if (!cancelled.getAsBoolean()) {
                weights[pair] = fit(pair, seen);
            }
        });
        if (cancelled.getAsBoolean()) {
            throw new Experiment.Cancelled();
        }
        return new Calibration(
                name, shape.layers(), shape.kvHeads(), seen.getFirst().keyDimension(), DECAY, MASS_POWER, weights);
    }

    private Seen look(int[] tokens, int before) {
        Seen seen = new Seen(shape.pairs(), tokens.length);
        float[][] received = new float[shape.pairs()][tokens.length]; // decayed
        float[][] sums = new float[shape.pairs()][tokens.length]; // so far
        float[] exposure = new float[tokens.length];
        read(tokens, before, (context, b, end, mass) -> {
            for (int t = 0; t < end; t++) {
                exposure[t] = (float) (exposure[t] * DECAY + Math.min(QUERIES, end - t));
            }
            Parallel.each(shape.pairs(), pair -> {
                float[] r = received[pair];
                float[] sum = sums[pair];
                int cells = mass.length / shape.pairs();
                for (int t = 0; t < end; t++) {
                    float m = mass[pair * cells + t];
                    r[t] = (float) (r[t] * DECAY + m);
                    sum[t] += m;
                }
                seen.samples(b, i -> {
                    int t = seen.token[i];
                    seen.rates[pair][3 * i] = r[t] / exposure[t];
                    seen.rates[pair][3 * i + 1] = r[t - 1] / exposure[t - 1];
                    seen.rates[pair][3 * i + 2] = r[t + 1] / exposure[t + 1];
                    seen.later[pair][i] = -sum[t];
                });
                if (end == tokens.length) {
                    keep(seen, pair, context);
                    complete(seen, pair, sum);
                }
            });
        });
        return seen;
    }

    /** From what a token had got at each point to what it got after it, a query. */
    private static void complete(Seen seen, int pair, float[] sum) {
        for (int i = 0; i < seen.point.length; i++) {
            int queries = (sum.length / BLOCK - seen.point[i] - 1) * QUERIES;
            seen.later[pair][i] = Math.max(0, seen.later[pair][i] + sum[seen.token[i]]) / queries;
        }
    }

    private void keep(Seen seen, int pair, CompressedContext context) {
        CellStats vectors = context.unrotated(pair / shape.kvHeads(), pair % shape.kvHeads());
        int n = seen.norms[pair].length;
        int cells = context.position();
        int dimension = vectors.keys().length / cells;
        seen.keys[pair] = new float[n * dimension];
        for (int i = 0; i < n; i++) {
            int t = i * SAMPLE + SAMPLE - 1;
            System.arraycopy(vectors.keys(), t * dimension, seen.keys[pair], i * dimension, dimension);
            seen.norms[pair][i] =
                    (float) Calibration.logLength(length(vectors.values(), t, vectors.values().length / cells));
        }
    }

    private static double length(float[] values, int cell, int dimension) {
        double sum = 0;
        for (int d = 0; d < dimension; d++) {
            sum += (double) values[cell * dimension + d] * values[cell * dimension + d];
        }
        return Math.sqrt(sum);
    }

    private void read(int[] tokens, int before, FullAttention.Look look) {
        CacheOptions full = CacheOptions.unlimited(tokens.length, BLOCK).with(compute);
        FullAttention.read(model, tokens, full, MASS_POWER, QUERIES, before, listener, cancelled, look);
    }

    private float[] fit(int pair, List<Seen> pieces) {
        int dimension = pieces.getFirst().keyDimension();
        int features = Calibration.SCALARS - 1 + dimension;
        float[] y = targets(pieces.stream().map(seen -> seen.later[pair]).toList());
        float[][] x = new float[y.length][features];
        int at = 0;
        for (Seen seen : pieces) {
            for (int i = 0; i < seen.point.length; i++, at++) {
                for (int d = 0; d < 3; d++) {
                    x[at][d] = (float) Calibration.logRate(seen.rates[pair][3 * i + d]);
                }
                x[at][3] = (float) Math.log((seen.point[i] + 1) * BLOCK - seen.token[i]);
                int t = seen.token[i] / SAMPLE;
                x[at][4] = seen.norms[pair][t];
                System.arraycopy(seen.keys[pair], t * dimension, x[at], 5, dimension);
            }
        }
        double[] w = PoissonRegression.fit(x, y);
        float[] weights = new float[w.length];
        for (int i = 0; i < w.length; i++) {
            weights[i] = (float) w[i];
        }
        return weights;
    }

    /**
     * What to fit to. Each piece counts alike, and no token for more than {@link #MOST} means of its piece. Else what a
     * text repeats, which heads that retrieve attend to like nothing else, is all that is learned.
     *
     * @param later of each piece, [samples]: the attention that came
     * @return of all pieces, one after the other; with the mean that the pieces have, but for what was cut
     */
    static float[] targets(List<float[]> later) {
        double mean = later.stream().mapToDouble(Calibrator::mean).average().orElseThrow();
        float[] targets = new float[later.stream().mapToInt(l -> l.length).sum()];
        int at = 0;
        for (float[] piece : later) {
            double own = mean(piece);
            for (float value : piece) {
                targets[at++] = own == 0 ? 0 : (float) (mean * Math.min(MOST, value / own));
            }
        }
        return targets;
    }

    private static double mean(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += value;
        }
        return sum / values.length;
    }
}
