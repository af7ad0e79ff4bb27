package dev.kvmerge.server;

import dev.kvmerge.engine.Generation;
import java.util.Map;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.atomic.LongAdder;

/** What /metrics tells, in Prometheus' text form. Counters have llama-server's names where it has them. */
final class Metrics {
    private final LongAdder promptTokens = new LongAdder();
    private final LongAdder promptNanos = new LongAdder();
    private final LongAdder reusedTokens = new LongAdder();
    private final LongAdder generatedTokens = new LongAdder();
    private final LongAdder generationNanos = new LongAdder();
    private final LongAdder gone = new LongAdder();
    private final Map<Integer, LongAdder> answers = new ConcurrentSkipListMap<>(); // by status

    void generated(Generation generation) {
        promptTokens.add(generation.readTokens());
        promptNanos.add(generation.promptTime().toNanos());
        reusedTokens.add(generation.promptTokens() - generation.readTokens());
        generatedTokens.add(generation.tokens().length);
        generationNanos.add(generation.generationTime().toNanos());
    }

    /** A client went away before its answer was whole. */
    void gone() {
        gone.increment();
    }

    void answered(int status) {
        answers.computeIfAbsent(status, s -> new LongAdder()).increment();
    }

    /**
     * All of it.
     *
     * @param cells in use, in all slots
     * @param allocated cells, in all slots
     */
    String text(int processing, int deferred, long cells, long allocated) {
        StringBuilder out = new StringBuilder();
        double promptSeconds = promptNanos.sum() / 1e9;
        double generationSeconds = generationNanos.sum() / 1e9;
        one(out, "counter", "llamacpp:prompt_tokens_total", "Number of prompt tokens processed.", promptTokens.sum());
        one(out, "counter", "llamacpp:prompt_seconds_total", "Prompt process time", promptSeconds);
        one(
                out,
                "counter",
                "llamacpp:tokens_predicted_total",
                "Number of generation tokens processed.",
                generatedTokens.sum());
        one(out, "counter", "llamacpp:tokens_predicted_seconds_total", "Predict process time", generationSeconds);
        one(
                out,
                "gauge",
                "llamacpp:prompt_tokens_seconds",
                "Average prompt throughput in tokens/s.",
                rate(promptTokens.sum(), promptSeconds));
        one(
                out,
                "gauge",
                "llamacpp:predicted_tokens_seconds",
                "Average generation throughput in tokens/s.",
                rate(generatedTokens.sum(), generationSeconds));
        one(out, "gauge", "llamacpp:requests_processing", "Number of requests processing.", processing);
        one(out, "gauge", "llamacpp:requests_deferred", "Number of requests deferred.", deferred);
        one(
                out,
                "counter",
                "kvmerge:prompt_tokens_reused_total",
                "Number of prompt tokens that a slot had read already.",
                reusedTokens.sum());
        one(out, "gauge", "kvmerge:cells_in_use", "KV cells in use in all idle slots, of each layer and head.", cells);
        one(out, "gauge", "kvmerge:cells_allocated", "KV cells allocated for them.", allocated);
        one(
                out,
                "counter",
                "kvmerge:clients_gone_total",
                "Number of clients that left before their answer.",
                gone.sum());
        head(out, "counter", "kvmerge:requests_total", "Number of requests answered, by status.");
        answers.forEach((status, n) -> out.append("kvmerge:requests_total{status=\"")
                .append(status)
                .append("\"} ")
                .append(n.sum())
                .append('\n'));
        return out.toString();
    }

    private static double rate(long n, double seconds) {
        return seconds == 0 ? 0 : n / seconds;
    }

    private static void one(StringBuilder out, String type, String name, String help, Number value) {
        head(out, type, name, help);
        out.append(name).append(' ').append(value).append('\n');
    }

    private static void head(StringBuilder out, String type, String name, String help) {
        out.append("# HELP ").append(name).append(' ').append(help).append('\n');
        out.append("# TYPE ").append(name).append(' ').append(type).append('\n');
    }
}
