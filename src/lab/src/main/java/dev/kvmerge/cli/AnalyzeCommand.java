package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.EntropyAnalysis;
import dev.kvmerge.eval.Text;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.report.Plots;
import dev.kvmerge.report.ResultsFolder;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.stream.IntStream;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** The entropy analysis. */
@Command(
        name = "analyze",
        mixinStandardHelpOptions = true,
        description = "Measures how spread out a model's attention is over a text: normalised row entropy by layer and "
                + "head, sinks, diffuse spans.",
        footer = {"", "Example:", "  kvmerge analyze -m smollm2-135m -f alice --tokens 2048 --out results/entropy"})
final class AnalyzeCommand implements Runnable {
    @Mixin
    private ModelOptions model;

    @Mixin
    private TextOptions text;

    @Mixin
    private final PartOptions reading = new PartOptions(2048);

    @Option(
            names = {"-b", "--batch-size"},
            paramLabel = "N",
            defaultValue = "128",
            description = "tokens decoded at once (default: ${DEFAULT-VALUE})")
    private int batch;

    @Option(names = "--block", hidden = true)
    private void oldBatch(int n) {
        Renamed.warn("--block", "--batch-size");
        batch = n;
    }

    @Option(
            names = "--sinks",
            paramLabel = "N",
            defaultValue = "4",
            description = "first tokens that count as sinks (default: ${DEFAULT-VALUE})")
    private int sinks;

    @Option(
            names = "--threshold",
            paramLabel = "H",
            defaultValue = "0.5",
            description = "entropy above which a row is diffuse (default: ${DEFAULT-VALUE})")
    private double threshold;

    @Mixin
    private final OutOption out = new OutOption("results/entropy");

    private List<Integer> layers; // the model's numbers of those that were looked at

    @Override
    public void run() {
        if (batch <= 0 || sinks < 0 || !(threshold >= 0 && threshold <= 1)) {
            throw new KvmergeException.Usage(
                    "--batch-size must be positive, --sinks not negative and --threshold 0..1: " + batch + ", " + sinks
                            + ", " + threshold);
        }
        ComputeSettings compute = model.compute(FlashAttention.OFF);
        model.checkCells(compute, Bias.NONE);
        Catalogue catalogue = Home.catalogue();
        Text read = text.read(catalogue);
        TextOptions.holds(read, "--tokens", reading.tokens);
        TextOptions.holds(read, "--batch-size", batch);
        try (ResultsFolder folder = ResultsFolder.open(out.folder);
                Model loaded = model.load(catalogue)) {
            int[] part = reading.of(loaded, read);
            List<EntropyAnalysis.Check> checks = EntropyAnalysis.validate();
            EntropyAnalysis.Findings findings;
            try (Progress progress = new Progress("reading " + read.path().getFileName())) {
                findings = EntropyAnalysis.analyse(
                        loaded,
                        part,
                        batch,
                        compute,
                        sinks,
                        threshold,
                        done -> progress.update(
                                (double) done / part.length,
                                String.format(Locale.ROOT, "%,d of %,d tokens", done, part.length)));
            }
            layers = loaded.shape().layerNumbers();
            if (loaded.slidingWindow() > 0) {
                System.out.printf(
                        Locale.ROOT,
                        "Layers %s are looked at; the others have sliding windows of %,d positions.%n%n",
                        layers,
                        loaded.slidingWindow());
            }
            print(checks, findings);
            write(folder, findings);
            if (!checks.stream().allMatch(EntropyAnalysis.Check::holds)) {
                throw new KvmergeException("the entropy kernel (" + dev.kvmerge.kernels.Kvmerge.instructionSet()
                        + ") disagrees with theory: the figures above cannot be trusted");
            }
        }
    }

    private void print(List<EntropyAnalysis.Check> checks, EntropyAnalysis.Findings f) {
        System.out.println("The theory on known inputs (normalised Shannon entropy H / log n):");
        for (EntropyAnalysis.Check c : checks) {
            System.out.printf(
                    Locale.ROOT,
                    "  %s %-46s expected %.5f  measured %.5f%n",
                    c.holds() ? "ok  " : "FAIL",
                    c.input(),
                    c.expected(),
                    Math.abs(c.measured()));
        }
        System.out.println();
        System.out.printf(Locale.ROOT, "Attention rows looked at: %,d. Mean entropy %.3f.%n", f.rows(), f.mean());
        int heads = f.byLayerAndHead()[0].length;
        int[] order = IntStream.range(0, f.byLayerAndHead().length * heads)
                .boxed()
                .sorted(Comparator.comparingDouble(i -> f.byLayerAndHead()[i / heads][i % heads]))
                .mapToInt(i -> i)
                .toArray();
        System.out.println("Sharpest heads: " + heads(f, Arrays.copyOf(order, Math.min(5, order.length)), heads));
        int[] reversed = IntStream.range(0, Math.min(5, order.length))
                .map(i -> order[order.length - 1 - i])
                .toArray();
        System.out.println("Most diffuse:   " + heads(f, reversed, heads));
        System.out.printf(
                Locale.ROOT,
                "The first %d tokens (sinks) get %.1f %% of all attention, by layer from %.1f %% to %.1f %%.%n",
                f.sinks(),
                100 * Arrays.stream(f.sinkShare()).average().orElse(0),
                100 * Arrays.stream(f.sinkShare()).min().orElse(0),
                100 * Arrays.stream(f.sinkShare()).max().orElse(0));
        System.out.printf(
                Locale.ROOT,
                "Above the threshold %.2f: %.1f %% of tokens, in %,d spans of neighbours, %.1f tokens each, the "
                        + "longest %,d.%n",
                f.threshold(),
                100 * f.diffuseShare(),
                f.spans().size(),
                f.spans().stream()
                        .mapToInt(EntropyAnalysis.Span::length)
                        .average()
                        .orElse(0),
                f.spans().stream().mapToInt(EntropyAnalysis.Span::length).max().orElse(0));
        System.out.println();
        System.out.println("Written to " + out.folder
                + ": entropy.csv, spans.csv, heat maps by layer and head and along the text, and the "
                + "distribution (*.svg).");
    }

    private String heads(EntropyAnalysis.Findings f, int[] which, int heads) {
        return String.join(
                ", ",
                Arrays.stream(which)
                        .mapToObj(i -> String.format(
                                Locale.ROOT,
                                "layer %d head %d (%.3f)",
                                layers.get(i / heads),
                                i % heads,
                                f.byLayerAndHead()[i / heads][i % heads]))
                        .toList());
    }

    private void write(ResultsFolder folder, EntropyAnalysis.Findings f) {
        StringBuilder csv = new StringBuilder("layer,head,mean_entropy,layer_sink_share\n");
        for (int l = 0; l < f.byLayerAndHead().length; l++) {
            for (int h = 0; h < f.byLayerAndHead()[l].length; h++) {
                csv.append(layers.get(l))
                        .append(',')
                        .append(h)
                        .append(',')
                        .append(f.byLayerAndHead()[l][h])
                        .append(',')
                        .append(f.sinkShare()[l])
                        .append('\n');
            }
        }
        folder.write("entropy.csv", csv.toString());
        StringBuilder spans = new StringBuilder("layer,kv_head,first_token,tokens,mean_entropy\n");
        for (EntropyAnalysis.Span s : f.spans()) {
            spans.append(layers.get(s.layer()))
                    .append(',')
                    .append(s.kvHead())
                    .append(',')
                    .append(s.from())
                    .append(',')
                    .append(s.length())
                    .append(',')
                    .append(s.entropy())
                    .append('\n');
        }
        folder.write("spans.csv", spans.toString());
        folder.write(
                "entropy-by-head.svg",
                Plots.heatMap(
                        "Normalised row entropy by layer and head",
                        "head",
                        "layer",
                        f.byLayerAndHead(),
                        1,
                        "H / log n"));
        folder.write(
                "entropy-along-text.svg",
                Plots.heatMap(
                        "Normalised row entropy by layer along the text",
                        "batch of " + batch + " tokens",
                        "layer",
                        f.byLayerAlongText(),
                        1,
                        "H / log n"));
        folder.write(
                "entropy-distribution.svg",
                Plots.distribution("Distribution of normalised row entropy", "H / log n", f.distribution()));
    }
}
