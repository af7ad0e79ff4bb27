package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import picocli.CommandLine.Option;

/** How much of a prompt a command that generates after it reads at once. */
final class PromptBlockOption {
    @Option(
            names = "--prompt-block",
            paramLabel = "N",
            description = "the same while a prompt is read, which llama.cpp does faster in ubatches of 512; needs cells"
                    + " for so many tokens, where a block needs them for its own (default: as --block)")
    private Integer tokens;

    /** The tokens of a prompt between two compressions, where others are so many. */
    int tokens(int block) {
        if (tokens == null) {
            return block;
        }
        Least.of("--prompt-block", tokens, 1);
        if (tokens < block) {
            throw new KvmergeException.Usage("--prompt-block " + tokens + " is less than --block " + block
                    + ", and prompts are read a block at a time at least: give more, or leave it out");
        }
        return tokens;
    }
}
