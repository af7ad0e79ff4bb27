package dev.kvmerge.cli;

import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.Model;
import picocli.CommandLine.Option;

/** Which part of a text a command reads. */
final class PartOptions {
    @Option(
            names = "--tokens",
            paramLabel = "N",
            description = "tokens of the text to read; 0 for all (default: ${DEFAULT-VALUE})")
    int tokens;

    @Option(
            names = "--offset",
            paramLabel = "T",
            defaultValue = "0",
            description = "first token of the text (default: ${DEFAULT-VALUE})")
    int offset;

    /** How much each command reads, unless it is told otherwise. */
    PartOptions(int otherwise) {
        tokens = otherwise;
    }

    /** The part's tokens; warns where it goes past the trained context. */
    int[] of(Model model, Text text) {
        return TextOptions.slice(model, text, offset, tokens);
    }
}
