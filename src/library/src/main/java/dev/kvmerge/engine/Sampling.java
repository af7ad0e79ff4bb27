package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import java.util.Map;
import java.util.Objects;

/**
 * How the next token is chosen: llama.cpp's sampler chain, in llama-cli's order: logit bias, penalties, top-k,
 * typical-p, top-p, min-p, temperature, and then the draw, from what the grammar allows. The names are llama-cli's
 * options.
 *
 * @param temperature --temp; 0: the likeliest token, always
 * @param topK --top-k: only so many of the likeliest; 0 for all
 * @param topP --top-p, 0..1: only the likeliest that have this probability together; 1 for all
 * @param minP --min-p, 0..1: only those with this share of the likeliest one's probability; 0 for all
 * @param typicalP --typical, 0..1: locally typical sampling (Meister et al. 2023); 1 for all
 * @param repeatPenalty --repeat-penalty, positive: logits of tokens that occurred lately are divided by it; 1 for none
 * @param repeatLastN --repeat-last-n: how many of the newest tokens the three penalties look at; 0 for none
 * @param presencePenalty --presence-penalty: taken from the logit of a token that occurred lately
 * @param frequencyPenalty --frequency-penalty: the same for each time that it occurred
 * @param seed --seed, 0 to 2^32 - 2: the same seed draws the same; {@link #RANDOM_SEED} for another each time
 * @param grammar --grammar: GBNF whose symbol "root" the text must obey; empty for none
 * @param logitBias --logit-bias: added to the logits of tokens; negative infinity forbids one
 */
public record Sampling(
        float temperature,
        int topK,
        float topP,
        float minP,
        float typicalP,
        float repeatPenalty,
        int repeatLastN,
        float presencePenalty,
        float frequencyPenalty,
        long seed,
        String grammar,
        Map<Integer, Float> logitBias) {
    /** Another seed each time. */
    public static final long RANDOM_SEED = -1;
    /** Most tokens that the penalties look back over. */
    public static final int MOST_REPEAT_LAST_N = 1 << 20;

    private static final long MOST_SEED = 0xFFFF_FFFEL; // llama.cpp draws one of its own for 2^32 - 1

    public Sampling {
        Limits.finite("temperature (--temp)", temperature);
        Limits.between("temperature (--temp)", temperature, 0, 1000);
        Limits.least("topK (--top-k)", topK, 0);
        Limits.between("topP (--top-p)", topP, 0, 1);
        Limits.between("minP (--min-p)", minP, 0, 1);
        Limits.between("typicalP (--typical)", typicalP, 0, 1);
        Limits.between("repeatPenalty (--repeat-penalty)", repeatPenalty, 1e-3f, 1000);
        Limits.least("repeatLastN (--repeat-last-n)", repeatLastN, 0);
        Limits.most("repeatLastN (--repeat-last-n)", repeatLastN, MOST_REPEAT_LAST_N);
        Limits.between("presencePenalty (--presence-penalty)", presencePenalty, -1000, 1000);
        Limits.between("frequencyPenalty (--frequency-penalty)", frequencyPenalty, -1000, 1000);
        Limits.least("seed (--seed)", seed, RANDOM_SEED);
        Limits.most("seed (--seed)", seed, MOST_SEED);
        Objects.requireNonNull(grammar, "grammar: \"\" for none");
        logitBias = Map.copyOf(logitBias);
        logitBias.forEach((token, bias) -> {
            if (token < 0 || Float.isNaN(bias) || bias == Float.POSITIVE_INFINITY) {
                throw new KvmergeException.Usage("logitBias (--logit-bias) of token " + token + " cannot be " + bias);
            }
        });
    }

    /** llama-cli's defaults: temperature .8, top-k 40, top-p .95, min-p .05, no penalties, a random seed. */
    public static Sampling usual() {
        return new Sampling(0.8f, 40, 0.95f, 0.05f, 1, 1, 64, 0, 0, RANDOM_SEED, "", Map.of());
    }

    /** The likeliest token, always. */
    public static Sampling greedy() {
        return usual().withTemperature(0);
    }

    /** The same with another temperature. */
    public Sampling withTemperature(float t) {
        return new Sampling(
                t,
                topK,
                topP,
                minP,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                grammar,
                logitBias);
    }

    /** The same with another top-k. */
    public Sampling withTopK(int k) {
        return new Sampling(
                temperature,
                k,
                topP,
                minP,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                grammar,
                logitBias);
    }

    /** The same with another top-p. */
    public Sampling withTopP(float p) {
        return new Sampling(
                temperature,
                topK,
                p,
                minP,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                grammar,
                logitBias);
    }

    /** The same with another min-p. */
    public Sampling withMinP(float p) {
        return new Sampling(
                temperature,
                topK,
                topP,
                p,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                grammar,
                logitBias);
    }

    /** The same with another typical-p. */
    public Sampling withTypicalP(float p) {
        return new Sampling(
                temperature,
                topK,
                topP,
                minP,
                p,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                grammar,
                logitBias);
    }

    /**
     * The same with other penalties.
     *
     * @param repeat see {@link #repeatPenalty}
     * @param lastN see {@link #repeatLastN}
     * @param presence see {@link #presencePenalty}
     * @param frequency see {@link #frequencyPenalty}
     */
    public Sampling withPenalties(float repeat, int lastN, float presence, float frequency) {
        return new Sampling(
                temperature, topK, topP, minP, typicalP, repeat, lastN, presence, frequency, seed, grammar, logitBias);
    }

    /** The same with another seed. */
    public Sampling withSeed(long s) {
        return new Sampling(
                temperature,
                topK,
                topP,
                minP,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                s,
                grammar,
                logitBias);
    }

    /** The same with another grammar. */
    public Sampling withGrammar(String gbnf) {
        return new Sampling(
                temperature,
                topK,
                topP,
                minP,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                gbnf,
                logitBias);
    }

    /** The same with other biases. */
    public Sampling withLogitBias(Map<Integer, Float> biases) {
        return new Sampling(
                temperature,
                topK,
                topP,
                minP,
                typicalP,
                repeatPenalty,
                repeatLastN,
                presencePenalty,
                frequencyPenalty,
                seed,
                grammar,
                biases);
    }
}
