package dev.kvmerge.eval;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.Full;
import java.util.Arrays;
import java.util.function.BooleanSupplier;

/** Reads a text through the full cache and shows, block by block, what was attended to. */
final class FullAttention {
    private FullAttention() {}

    /** Is shown each block. */
    @FunctionalInterface
    interface Look {
        /**
         * A block was read.
         *
         * @param end tokens read
         * @param mass attention that the block's queries gave, [layer * kvHeads + kvHead][cell]; in a full cache, a
         *     cell's number is its token's position
         */
        void at(CompressedContext context, int block, int end, float[] mass);
    }

    /**
     * Reads a text.
     *
     * @param options of an unlimited context
     * @param power of the attention that is summed up, 1, 1.5 or 2
     * @param queries how many of a block's newest queries are looked at; 0 for all
     * @param before tokens that the listener was told of already
     * @throws Experiment.Cancelled if asked to stop
     */
    static void read(
            Model model,
            int[] tokens,
            CacheOptions options,
            double power,
            int queries,
            int before,
            Experiment.Listener listener,
            BooleanSupplier cancelled,
            Look look) {
        Observer.Options observe = Observer.Options.of(
                        true, false, Bias.NONE, options.compute().threads())
                .withBackend(model.backend())
                .withMassPower(power)
                .withMassQueries(queries)
                .withObservation(options.compute().observation());
        long start = System.nanoTime();
        try (CompressedContext context = new CompressedContext(model, new Full(), options, observe)) {
            for (int at = 0, block = 0; at < tokens.length; block++) {
                if (cancelled.getAsBoolean()) {
                    throw new Experiment.Cancelled();
                }
                int end = Math.min(tokens.length, at + options.block());
                context.decode(Arrays.copyOfRange(tokens, at, end), false);
                context.flush();
                look.at(context, block, end, context.lastStats().mass());
                listener.block(before + end, Double.NaN, end / ((System.nanoTime() - start) / 1e9));
                at = end;
            }
        }
    }
}
