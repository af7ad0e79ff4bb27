package dev.kvmerge.eval;

import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.cache.Timings;
import dev.kvmerge.kernels.Scorer;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.function.BooleanSupplier;

/** One run of an experiment through its passages of text: decodes them, scores them, and adds up what that takes. */
final class Reading {
    private final Experiment.Setup setup;
    private final int vocabulary;
    private final Scorer scorer;
    private final int firstCompared;
    private final Trace trace;
    private Spent spent = new Spent(0, 0, 0, 0, 0, 0, 0, false);
    private double nll; // of all tokens scored so far

    /**
     * A run to come.
     *
     * @param firstCompared the first token of a passage whose prediction is compared with the full cache's
     * @param trace what is found goes here
     */
    Reading(Experiment.Setup setup, int vocabulary, Scorer scorer, int firstCompared, Trace trace) {
        this.setup = setup;
        this.vocabulary = vocabulary;
        this.scorer = scorer;
        this.firstCompared = firstCompared;
        this.trace = trace;
    }

    /**
     * What the passages so far took: nanoseconds, and the most cells allocated, bytes of K and V and of kvmerge's
     * table; and whether llama.cpp ran them with flash attention, without which values lie transposed.
     */
    record Spent(
            long decode,
            long observe,
            long plan,
            long apply,
            int allocated,
            long kvBytes,
            long tableBytes,
            boolean flashAttention) {
        private Spent with(CompressedContext context) {
            Timings t = context.timings();
            return new Spent(
                    decode + t.decode(),
                    observe + t.observe(),
                    plan + t.plan(),
                    apply + t.apply(),
                    Math.max(allocated, context.info().cells()),
                    Math.max(kvBytes, context.info().bytes()),
                    Math.max(tableBytes, context.tableBytes()),
                    !context.info().valuesTransposed());
        }

        /** All of the time. */
        long nanos() {
            return decode + observe + plan + apply;
        }
    }

    Spent spent() {
        return spent;
    }

    /**
     * Reads one passage, the only one when the text is streamed.
     *
     * @param predictions the full cache's: written if this is its run, else compared with
     * @param full whether this is its run
     * @throws Experiment.Cancelled if asked to stop
     */
    void read(
            CompressedContext context,
            int passage,
            PackedLogits predictions,
            boolean full,
            Experiment.Listener listener,
            BooleanSupplier cancelled) {
        Experiment.Mode mode = setup.mode();
        int start = passage * mode.passage();
        int[] tokens = Arrays.copyOfRange(setup.tokens(), start, start + mode.passage());
        for (int at = 0; at < tokens.length; ) {
            if (cancelled.getAsBoolean()) {
                throw new Experiment.Cancelled();
            }
            boolean scored = at >= mode.prefill();
            int end = Math.min(scored ? tokens.length : mode.prefill(), at + setup.block());
            context.decode(Arrays.copyOfRange(tokens, at, end), scored);
            // Row r of the block's logits predicts token at + r + 1. Nothing is known after the last token of the text.
            int rows = Math.min(end, tokens.length - 1) - at;
            if (scored && rows > 0) {
                score(context.logits(), tokens, at, rows, passage, predictions, full);
            }
            if (end == tokens.length && mode.streams()) {
                context.flush(); // a last block that is not full
            }
            double seconds = (spent.nanos() + context.timings().total()) / 1e9;
            int done = start + end;
            int scoredSoFar = mode.streams()
                    ? Math.min(end, tokens.length - 1)
                    : passage * (mode.passage() - mode.prefill() - 1) + end - mode.prefill();
            listener.block(done, scoredSoFar > 0 ? Math.exp(nll / scoredSoFar) : Double.NaN, done / seconds);
            at = end;
        }
        if (!mode.streams()) {
            context.account();
        }
        spent = spent.with(context);
    }

    private void score(
            MemorySegment logits, int[] tokens, int at, int rows, int passage, PackedLogits predictions, boolean full) {
        long rowBytes = 4L * vocabulary;
        int start = passage * setup.mode().passage();
        double[] found = scorer.negativeLogLikelihood(logits, Arrays.copyOfRange(tokens, at + 1, at + 1 + rows));
        System.arraycopy(found, 0, trace.nll(), start + at + 1, rows);
        nll += Arrays.stream(found).sum();
        int skip = Math.max(0, firstCompared - (at + 1));
        int compared = rows - skip;
        if (compared <= 0) {
            return;
        }
        MemorySegment own = logits.asSlice(skip * rowBytes, compared * rowBytes);
        if (full) {
            predictions.append(own, compared);
            return;
        }
        int rowsOfPassage = setup.mode().passage() - firstCompared;
        int row = passage * rowsOfPassage + at + 1 + skip - firstCompared;
        Scorer.Divergence d = scorer.divergence(predictions.rows(row, compared), own, compared);
        System.arraycopy(d.kl(), 0, trace.kl(), start + at + 1 + skip, compared);
        System.arraycopy(d.sameTop(), 0, trace.sameTop(), start + at + 1 + skip, compared);
    }
}
