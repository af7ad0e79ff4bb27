package dev.kvmerge.server;

import dev.kvmerge.engine.GenerateOptions;

/**
 * A request for an answer.
 *
 * @param chat whether it came to /v1/chat/completions, else to /v1/completions
 * @param prompt what is to be read
 * @param options how to answer; the most tokens are within the context
 * @param stream whether the answer comes in pieces
 * @param includeUsage whether a stream's last piece tells of the usage
 * @param echo whether the answer begins with the prompt's text
 * @param slot a slot's number, or {@link Slots#ANY}
 */
record Request(
        boolean chat,
        Prompt prompt,
        GenerateOptions options,
        boolean stream,
        boolean includeUsage,
        boolean echo,
        int slot) {}
