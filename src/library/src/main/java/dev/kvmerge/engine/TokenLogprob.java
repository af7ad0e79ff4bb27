package dev.kvmerge.engine;

import java.util.List;

/**
 * A token and the log probability that the model gave it, before the sampler changed anything.
 *
 * @param token its number
 * @param piece its bytes, which may be a part of a UTF-8 character
 * @param logprob natural logarithm of its probability
 * @param top the likeliest tokens at this place, likeliest first, as many as {@link GenerateOptions#logprobs} says;
 *     empty within such a list
 */
public record TokenLogprob(int token, byte[] piece, double logprob, List<TokenLogprob> top) {
    public TokenLogprob {
        top = List.copyOf(top);
    }
}
