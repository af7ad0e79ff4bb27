package dev.kvmerge.engine;

import java.time.Duration;
import java.util.List;

/**
 * What was generated.
 *
 * @param text all of it, as it was streamed
 * @param tokens as the model made them, the one that ended the generation and the stop string's among them
 * @param ended why it ended
 * @param stop the stop string that was met, or null
 * @param promptTokens tokens of the prompt
 * @param readTokens tokens of the prompt that had to be read, the others having been known
 * @param logprobs of each of the tokens where {@link GenerateOptions#logprobs} asks for them, else empty
 * @param promptTime until the prompt was read
 * @param generationTime from then on
 */
public record Generation(
        String text,
        int[] tokens,
        Ended ended,
        String stop,
        int promptTokens,
        int readTokens,
        List<TokenLogprob> logprobs,
        Duration promptTime,
        Duration generationTime) {
    /** Why a generation ended. */
    public enum Ended {
        /** The model ended it: EOS, EOT or the like. */
        END_OF_GENERATION,
        /** A stop string was met. */
        STOP,
        /** As many tokens as were asked for. */
        LENGTH,
        /** {@link Session#cancel}, an interrupt of the thread, or the engine was closed. */
        CANCELLED,
        /** The time was over. */
        TIMEOUT
    }

    public Generation {
        logprobs = List.copyOf(logprobs);
    }

    /** Tokens generated a second; 0 when there was none. */
    public double tokensPerSecond() {
        double seconds = generationTime.toNanos() / 1e9;
        return tokens.length == 0 || seconds == 0 ? 0 : tokens.length / seconds;
    }
}
