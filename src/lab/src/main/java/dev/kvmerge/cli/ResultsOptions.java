package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.report.ResultsFolder;
import java.nio.file.Path;
import java.util.function.Predicate;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** The results folder of a command that can go on where it was stopped. */
final class ResultsOptions {
    @Mixin
    private final OutOption out;

    @Option(names = "--resume", description = "go on with the runs in --out")
    boolean resume;

    @Option(names = "--overwrite", description = "replace the results in --out")
    private boolean overwrite;

    ResultsOptions(String otherwise) {
        out = new OutOption(otherwise);
    }

    Path folder() {
        return out.folder;
    }

    /** Refuses what excludes itself. */
    void check() {
        if (resume && overwrite) {
            throw new KvmergeException.Usage("--resume and --overwrite exclude each other");
        }
    }

    /**
     * Opens the folder, and refuses one with results of which it was not said what becomes of them.
     *
     * @param results whether there are any
     */
    ResultsFolder open(Predicate<ResultsFolder> results) {
        ResultsFolder opened = ResultsFolder.open(out.folder);
        if (results.test(opened) && !resume && !overwrite) {
            opened.close();
            throw new KvmergeException.Usage("there are results in " + out.folder
                    + " already: go on with --resume, replace them with --overwrite, or choose another --out");
        }
        return opened;
    }
}
