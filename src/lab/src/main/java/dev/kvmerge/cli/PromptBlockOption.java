package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import picocli.CommandLine.Option;

/** How much of a prompt a command that generates after it reads at once. */
final class PromptBlockOption {
    /** An ubatch of llama.cpp's: its prompts are 1.6 times as fast with it on a GPU, and hardly on a CPU. */
    static final int ON_A_GPU = 512;

    @Option(
            names = "--prompt-block",
            paramLabel = "N",
            description =
                    "tokens of a prompt between two compressions: a GPU is faster with 512 at a time. Cells for so"
                            + " many are allocated, beside those that stay (default: as --block; with --device cuda,"
                            + " chat, generate and serve take " + ON_A_GPU
                            + ", if --cells are enough for that; never with --kv-mib)")
    private Integer tokens;

    /** The tokens of a prompt between two compressions, where others are so many. */
    int tokens(int block) {
        return tokens(block, block);
    }

    /** As above, with another default. */
    int tokens(int block, int otherwise) {
        if (tokens == null) {
            return Math.max(block, otherwise);
        }
        Least.of("--prompt-block", tokens, 1);
        if (tokens < block) {
            throw new KvmergeException.Usage("--prompt-block " + tokens + " is less than --block " + block
                    + ", and prompts are read a block at a time at least: give more, or leave it out");
        }
        return tokens;
    }
}
