package dev.kvmerge.cli;

import picocli.CommandLine.Option;

/** The block of a command that compresses. */
final class BlockOption {
    @Option(
            names = "--block",
            paramLabel = "N",
            defaultValue = "128",
            description = "tokens between two compressions (default: ${DEFAULT-VALUE})")
    int tokens;
}
