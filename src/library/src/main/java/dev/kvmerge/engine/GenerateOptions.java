package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.function.Consumer;

/**
 * How to generate.
 *
 * @param maxTokens most tokens to generate; 0 reads the prompt alone
 * @param stop strings that end the text before them
 * @param sampling how a token is chosen
 * @param timeout most time to take, the prompt's included; null for no limit
 * @param ignoreEos whether the generation goes on where the model would end it
 * @param logprobs how many of the likeliest tokens to give beside each one, with their log probabilities; 0 for the
 *     token's own alone, -1 for none
 * @param progress told, after each block of the prompt, how many of the new tokens have been read; null for nobody
 * @param special whether special tokens that are written in a prompt are parsed as such; a chat's always are
 * @param onLogprob given each token's log probability as it is chosen, before its text comes; null for nobody
 */
public record GenerateOptions(
        int maxTokens,
        List<String> stop,
        Sampling sampling,
        Duration timeout,
        boolean ignoreEos,
        int logprobs,
        ReadOptions.Progress progress,
        boolean special,
        Consumer<TokenLogprob> onLogprob) {
    /** Most alternatives to a token. */
    public static final int MOST_LOGPROBS = 100;

    public GenerateOptions {
        Limits.least("maxTokens (-n)", maxTokens, 0);
        Objects.requireNonNull(sampling, "sampling");
        Limits.timeout(timeout);
        Limits.least("logprobs", logprobs, -1);
        Limits.most("logprobs", logprobs, MOST_LOGPROBS);
        stop = List.copyOf(stop);
        if (stop.stream().anyMatch(String::isEmpty)) {
            throw new KvmergeException.Usage("a stop string is empty: it would end every text before it begins");
        }
        if (ignoreEos && !sampling.grammar().isEmpty()) {
            throw new KvmergeException.Usage("ignoreEos (--ignore-eos) and a grammar (--grammar) do not go together:"
                    + " nothing can follow what the grammar has ended");
        }
    }

    /** At most 512 tokens, drawn as llama-cli does. */
    public static GenerateOptions usual() {
        return new GenerateOptions(512, List.of(), Sampling.usual(), null, false, -1, null, false, null);
    }

    /** At most so many tokens, the likeliest ones. */
    public static GenerateOptions greedy(int maxTokens) {
        return usual().withMaxTokens(maxTokens).withSampling(Sampling.greedy());
    }

    /** The same with another limit of tokens. */
    public GenerateOptions withMaxTokens(int n) {
        return new GenerateOptions(n, stop, sampling, timeout, ignoreEos, logprobs, progress, special, onLogprob);
    }

    /** The same with other stop strings. */
    public GenerateOptions withStop(List<String> strings) {
        return new GenerateOptions(
                maxTokens, strings, sampling, timeout, ignoreEos, logprobs, progress, special, onLogprob);
    }

    /** The same with other sampling. */
    public GenerateOptions withSampling(Sampling s) {
        return new GenerateOptions(maxTokens, stop, s, timeout, ignoreEos, logprobs, progress, special, onLogprob);
    }

    /** The same with another limit of time. */
    public GenerateOptions withTimeout(Duration most) {
        return new GenerateOptions(maxTokens, stop, sampling, most, ignoreEos, logprobs, progress, special, onLogprob);
    }

    /** The same, ended by the model or not. */
    public GenerateOptions withIgnoreEos(boolean ignored) {
        return new GenerateOptions(maxTokens, stop, sampling, timeout, ignored, logprobs, progress, special, onLogprob);
    }

    /** The same with other log probabilities. */
    public GenerateOptions withLogprobs(int n) {
        return new GenerateOptions(maxTokens, stop, sampling, timeout, ignoreEos, n, progress, special, onLogprob);
    }

    /** The same with progress told. */
    public GenerateOptions withProgress(ReadOptions.Progress told) {
        return new GenerateOptions(maxTokens, stop, sampling, timeout, ignoreEos, logprobs, told, special, onLogprob);
    }

    /** The same with special tokens in a prompt parsed, or not. */
    public GenerateOptions withSpecial(boolean parsed) {
        return new GenerateOptions(
                maxTokens, stop, sampling, timeout, ignoreEos, logprobs, progress, parsed, onLogprob);
    }

    /** The same with log probabilities told as they come; {@link #withLogprobs} says whether they are worked out. */
    public GenerateOptions withOnLogprob(Consumer<TokenLogprob> told) {
        return new GenerateOptions(maxTokens, stop, sampling, timeout, ignoreEos, logprobs, progress, special, told);
    }
}
