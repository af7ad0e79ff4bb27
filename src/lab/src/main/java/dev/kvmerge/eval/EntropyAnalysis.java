package dev.kvmerge.eval;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.kernels.Scorer;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;
import dev.kvmerge.strategy.Full;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.IntConsumer;

/**
 * How spread out a model's attention is over a text: the normalised Shannon entropy H / log n of every attention row.
 */
public final class EntropyAnalysis {
    private static final int BINS = 50;

    /**
     * What was found.
     *
     * @param byLayerAndHead mean entropy [layer][head]
     * @param byLayerAlongText mean entropy [layer][batch of tokens]
     * @param distribution share of all rows in each of 50 bins over 0..1
     * @param mean of all rows
     * @param sinkShare share of all attention that goes to the first {@code sinks} tokens, [layer]
     * @param sinks first tokens counted as sinks
     * @param threshold above which a row is diffuse
     * @param diffuseShare share of (layer, KV head, token) whose mean entropy is above the threshold
     * @param spans runs of two and more neighbours above it, by layer, KV head and position
     * @param rows rows looked at
     */
    public record Findings(
            double[][] byLayerAndHead,
            double[][] byLayerAlongText,
            double[] distribution,
            double mean,
            double[] sinkShare,
            int sinks,
            double threshold,
            double diffuseShare,
            List<Span> spans,
            long rows) {}

    /**
     * A run of neighbouring tokens whose rows are diffuse: what the founding algorithm would merge.
     *
     * @param from its first token
     * @param length tokens
     * @param entropy mean of theirs
     */
    public record Span(int layer, int kvHead, int from, int length, double entropy) {}

    /**
     * A check of the theory on a known input.
     *
     * @param input in words
     * @param expected normalised entropy
     * @param measured by the native kernel
     */
    public record Check(String input, double expected, double measured) {
        /** Whether both agree to five decimals. */
        public boolean holds() {
            return Math.abs(expected - measured) <= 1e-5;
        }
    }

    private EntropyAnalysis() {}

    /** The theory on inputs whose entropy is known in closed form, through the kernel that does the real work. */
    public static List<Check> validate() {
        int n = 1000;
        float[] uniform = new float[n];
        Arrays.fill(uniform, 1f / n);
        float[] oneHot = new float[n];
        oneHot[17] = 1;
        float[] half = new float[n];
        Arrays.fill(half, 0, n / 2, 2f / n);
        float[] sink = new float[n]; // half of the mass on one cell, the rest uniform
        Arrays.fill(sink, 0.5f / (n - 1));
        sink[0] = 0.5f;
        float[] geometric = new float[n]; // p_i = 2^-(i+1): H = 2 ln 2 in the limit
        int terms = 100;
        for (int i = 0; i < terms; i++) {
            geometric[i] = (float) Math.pow(2, -(i + 1));
        }
        float[] h = Scorer.rowEntropy(new float[][] {uniform, oneHot, half, sink, geometric});
        double sinkEntropy = (Math.log(2) + 0.5 * Math.log(n - 1)) / Math.log(n);
        return List.of(
                new Check("uniform over 1,000 cells", 1, h[0]),
                new Check("all on one cell", 0, h[1]),
                new Check("uniform over the 500 visible of 1,000 cells", 1, h[2]),
                new Check("half on a sink, half uniform", sinkEntropy, h[3]),
                new Check("geometric, p = 1/2, 1/4, ...", 2 * Math.log(2) / Math.log(terms), h[4]));
    }

    /**
     * Reads a text with the full cache and looks at every row.
     *
     * @param batch tokens decoded at once
     * @param sinks first tokens counted as sinks
     * @param threshold above which a row is diffuse
     * @param progress is told the tokens done
     */
    public static Findings analyse(
            Model model,
            int[] tokens,
            int batch,
            ComputeSettings compute,
            int sinks,
            double threshold,
            IntConsumer progress) {
        Shape shape = model.shape();
        int batches = Math.ceilDiv(tokens.length, batch);
        double[][] byHead = new double[shape.layers()][shape.heads()];
        double[][] alongText = new double[shape.layers()][batches];
        double[] sinkMass = new double[shape.layers()];
        double[] mass = new double[shape.layers()];
        long[] bins = new long[BINS];
        float[][] perPair = new float[shape.pairs()][tokens.length];
        Observer.Options observe =
                Observer.Options.of(true, true, Bias.NONE, compute.threads()).withBackend(model.backend());
        CacheOptions cache = CacheOptions.unlimited(tokens.length, batch).with(compute);
        try (CompressedContext context = new CompressedContext(model, new Full(), cache, observe)) {
            for (int b = 0; b < batches; b++) {
                int from = b * batch;
                int to = Math.min(tokens.length, from + batch);
                int n = to - from;
                context.decode(Arrays.copyOfRange(tokens, from, to));
                context.flush();
                Observer.Stats stats = context.lastStats();
                int cells = stats.mass().length / shape.pairs();
                for (int layer = 0; layer < shape.layers(); layer++) {
                    for (int head = 0; head < shape.heads(); head++) {
                        for (int t = 0; t < n; t++) {
                            float h = stats.entropy()[(layer * shape.heads() + head) * n + t];
                            byHead[layer][head] += h;
                            alongText[layer][b] += h / (n * shape.heads());
                            bins[Math.min(BINS - 1, (int) (h * BINS))]++;
                            perPair[layer * shape.kvHeads() + head / shape.headsPerKvHead()][from + t] +=
                                    h / shape.headsPerKvHead();
                        }
                    }
                    for (int h = 0; h < shape.kvHeads(); h++) {
                        int base = (layer * shape.kvHeads() + h) * cells;
                        for (int c = 0; c < Math.min(cells, to); c++) { // with the full cache, cell c holds token c
                            mass[layer] += stats.mass()[base + c];
                            sinkMass[layer] += c < sinks ? stats.mass()[base + c] : 0;
                        }
                    }
                }
                progress.accept(to);
            }
        }
        return findings(byHead, alongText, sinkMass, mass, bins, perPair, tokens.length, sinks, threshold);
    }

    private static Findings findings(
            double[][] byHead,
            double[][] alongText,
            double[] sinkMass,
            double[] mass,
            long[] bins,
            float[][] perPair,
            int tokens,
            int sinks,
            double threshold) {
        int layers = byHead.length;
        long rows = (long) layers * byHead[0].length * tokens;
        double sum = 0;
        for (double[] layer : byHead) {
            for (int h = 0; h < layer.length; h++) {
                sum += layer[h];
                layer[h] /= tokens;
            }
        }
        double[] sinkShare = new double[layers];
        Arrays.setAll(sinkShare, l -> sinkMass[l] / mass[l]);
        List<Span> spans = new ArrayList<>();
        int kvHeads = perPair.length / layers;
        long diffuse = 0;
        for (int pair = 0; pair < perPair.length; pair++) {
            int length = 0;
            double spanSum = 0;
            for (int t = 0; t <= tokens; t++) {
                if (t < tokens && perPair[pair][t] > threshold) {
                    length++;
                    diffuse++;
                    spanSum += perPair[pair][t];
                } else {
                    if (length >= 2) {
                        spans.add(new Span(pair / kvHeads, pair % kvHeads, t - length, length, spanSum / length));
                    }
                    length = 0;
                    spanSum = 0;
                }
            }
        }
        return new Findings(
                byHead,
                alongText,
                Arrays.stream(bins).mapToDouble(b -> (double) b / rows).toArray(),
                sum / rows,
                sinkShare,
                sinks,
                threshold,
                (double) diffuse / ((long) perPair.length * tokens),
                spans,
                rows);
    }
}
