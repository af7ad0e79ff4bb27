package dev.kvmerge.eval;

import java.util.Map;

/**
 * One run of the text through one cache. Null where a figure does not exist, never 0. The field names are those of
 * results.json.
 *
 * @param strategy name
 * @param parameters the strategy's
 * @param cells cells that stay after each block; of full, the text's tokens
 * @param compression share of the text's cells that are saved, 0..1
 * @param tokens of the text, all decoded
 * @param scored tokens that perplexity and divergence are over: those past the budget, the same for all strategies of a
 *     compression
 * @param perplexity of the scored tokens
 * @param perplexitySe its standard error
 * @param perplexityFull of the full cache on the same tokens
 * @param klMean mean KL(full || this) over the whole vocabulary, nats
 * @param klSe its standard error
 * @param klP99 99th percentile
 * @param top1Agreement share of tokens whose likeliest prediction is the full cache's
 * @param kvBytes K and V tensors of all layers, as allocated
 * @param kvBytesFull the same for the full cache
 * @param cellsAllocated cells that llama.cpp allocated: the budget and a block, rounded up to 256
 * @param tableBytes what kvmerge keeps in memory beside the cells: its table of them, plans, what was observed and the
 *     queries captured for it; null where nothing is planned. Older files have the table's alone
 * @param peakRssBytes highest resident memory of the process in the run
 * @param secondsTotal wall clock, scoring included
 * @param secondsDecode in llama.cpp
 * @param secondsObserve in the eval callback
 * @param secondsPlan deciding
 * @param secondsApply rewriting and freeing cells
 * @param tokensPerSecond tokens over decode, observe, plan and apply
 * @param flashAttention "on" or "off", as llama.cpp ran it; null in older files
 * @param observedQueries of a block's captured queries, about so many told what attention the cells get, 0 for all;
 *     null where none were captured or nothing asked for attention
 * @param observation "capture", or with flash attention "stop": how the attention or queries were observed; null where
 *     none were, where attention was read without flash attention, and in older files
 * @param kvMib MiB that the cells were to fit into; null where they were asked for by compression
 * @param asked the name that was asked for, where the cells' types were chosen for it; else the strategy's; null in
 *     older files
 */
public record RunResult(
        String strategy,
        Map<String, Object> parameters,
        int cells,
        double compression,
        int tokens,
        int scored,
        Double perplexity,
        Double perplexitySe,
        Double perplexityFull,
        Double klMean,
        Double klSe,
        Double klP99,
        Double top1Agreement,
        Long kvBytes,
        Long kvBytesFull,
        Integer cellsAllocated,
        Long tableBytes,
        Long peakRssBytes,
        Double secondsTotal,
        Double secondsDecode,
        Double secondsObserve,
        Double secondsPlan,
        Double secondsApply,
        Double tokensPerSecond,
        String flashAttention,
        Integer observedQueries,
        String observation,
        Double kvMib,
        String asked) {
    /** With what flash attention a run was made, from how many captured queries, and how it was observed. */
    record Attention(boolean flash, Integer observedQueries, String observation) {}

    /** What tells this run from the others of an experiment, fit for a file name: "entropy-merged-70". */
    public String id() {
        return id(strategy, compression);
    }

    static String id(String strategy, double compression) {
        String percent = java.math.BigDecimal.valueOf(compression * 100)
                .setScale(4, java.math.RoundingMode.HALF_UP)
                .stripTrailingZeros()
                .toPlainString();
        return strategy.equals(dev.kvmerge.strategy.Strategies.FULL)
                ? strategy
                : strategy.replaceAll("[^A-Za-z0-9.-]+", "-") + "-" + percent.replace('.', '_');
    }

    /**
     * What became of a run.
     *
     * @param firstScored the first token whose prediction counts
     * @param trace of all tokens
     * @param full the full run's, or null where this is it
     * @param seconds it took
     */
    static RunResult of(
            Experiment.Run run,
            int firstScored,
            Reading.Spent spent,
            Attention attention,
            Trace trace,
            Experiment.Outcome full,
            double seconds) {
        boolean isFull = run.isFull();
        Trace.Perplexity perplexity = trace.perplexity(firstScored);
        Trace.Divergence divergence = isFull ? null : trace.divergence(firstScored);
        long bytes = spent.kvBytes();
        int tokens = trace.nll().length;
        return new RunResult(
                run.name(),
                run.parameters(),
                run.cells(),
                run.compression(),
                tokens,
                perplexity.tokens(),
                finite(perplexity.value()),
                finite(perplexity.standardError()),
                isFull
                        ? finite(perplexity.value())
                        : full == null
                                ? null
                                : finite(full.trace().perplexity(firstScored).value()),
                divergence == null ? null : finite(divergence.mean()),
                divergence == null ? null : finite(divergence.standardError()),
                divergence == null ? null : finite(divergence.p99()),
                divergence == null ? null : finite(divergence.topAgreement()),
                bytes,
                isFull
                        ? Long.valueOf(bytes)
                        : full == null ? null : full.result().kvBytes(),
                spent.allocated(),
                run.method().keepsAll() ? null : spent.tableBytes(),
                PeakMemory.bytes(),
                seconds,
                spent.decode() / 1e9,
                spent.observe() / 1e9,
                spent.plan() / 1e9,
                spent.apply() / 1e9,
                tokens / (spent.nanos() / 1e9),
                attention.flash() ? "on" : "off",
                attention.observedQueries(),
                attention.observation(),
                run.mib(),
                run.asked());
    }

    private static Double finite(double x) {
        return Double.isFinite(x) ? x : null;
    }
}
