package dev.kvmerge.cli;

import java.nio.file.Path;
import picocli.CommandLine.Option;

/** The results folder of a command. */
final class OutOption {
    @Option(names = "--out", paramLabel = "DIR", description = "where results go (default: ${DEFAULT-VALUE})")
    Path folder;

    /** Each command has a folder of its own, unless it is told another. */
    OutOption(String otherwise) {
        folder = Path.of(otherwise);
    }
}
