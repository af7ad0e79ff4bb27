package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.CellsUsage;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Generation;
import dev.kvmerge.engine.Session;
import dev.kvmerge.eval.Experiment;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** A text that goes on after a prompt. */
@Command(
        name = "generate",
        mixinStandardHelpOptions = true,
        description = {
            "Goes on after a prompt, in a fixed number of KV cells however long the text gets.",
            "As in llama-cli, special tokens that are written in the prompt are parsed as such. The text goes to"
                    + " standard output, what it took to standard error."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge generate -p 'Once upon a time' -n 64",
            "  kvmerge generate -m path/to/model.gguf -f book.txt -c 1024 -n 200 --temp 0"
        })
final class GenerateCommand implements Runnable {
    @Spec
    private CommandSpec command;

    @Mixin
    private SessionOptions session;

    @Mixin
    private SamplingOptions sampling;

    @Option(
            names = {"-p", "--prompt"},
            paramLabel = "TEXT",
            description = "what to go on after")
    private String prompt;

    @Option(
            names = {"-f", "--file"},
            paramLabel = "FILE",
            description = "the same, from a file of UTF-8 text")
    private Path file;

    @Option(
            names = {"-e", "--escape"},
            negatable = true,
            defaultValue = "true",
            fallbackValue = "true",
            description = "whether \\n, \\t, \\\\ and the like in -p are what they stand for (default: they are)")
    private boolean escape;

    @Option(
            names = "--display-prompt",
            negatable = true,
            defaultValue = "true",
            fallbackValue = "true",
            description = "whether the prompt is printed before the text (default: it is)")
    private boolean display;

    @Override
    public void run() {
        if (file != null) {
            StrategyOptions.refuse(command, List.of("--escape"), "goes with -p");
        }
        GenerateOptions options = sampling.options().withSpecial(true);
        String start = prompt();
        Interrupt.listen("kvmerge: stopping");
        try (EngineSettings.Loaded loaded = session.load(command, null);
                Session open = loaded.engine().open();
                Progress progress = new Progress("reading")) {
            Generation made = open.generate(
                    start,
                    options.withProgress((done, all) -> {
                        progress.update((double) done / all, done + " of " + all + " tokens");
                        stopIfAsked(open);
                        if (done == all) {
                            progress.clear();
                            print(display ? start : "");
                        }
                    }),
                    text -> {
                        print(text);
                        stopIfAsked(open);
                    });
            System.out.println();
            System.err.println(summary(made, open));
            if (Interrupt.requested()) {
                throw new Experiment.Cancelled();
            }
        }
    }

    private String prompt() {
        String given = SamplingOptions.either("-p", prompt, "-f", file);
        if (given == null) {
            throw new KvmergeException.Usage("nothing to go on after: give -p TEXT or -f FILE");
        }
        String text = file == null && escape ? Escapes.replaced(given) : given;
        if (text.isEmpty()) {
            throw new KvmergeException.Usage("the prompt is empty: give -p or -f some text");
        }
        return text;
    }

    private static void stopIfAsked(Session session) {
        if (Interrupt.requested()) {
            session.cancel();
        }
    }

    private static void print(String text) {
        System.out.print(text);
        Output.check();
    }

    /** What it took. */
    static String summary(Generation made, Session session) {
        CellsUsage usage = session.usage();
        double read = made.promptTime().toNanos() / 1e9;
        return String.format(
                Locale.ROOT,
                "kvmerge: read %,d tokens in %.1f s, made %,d at %.1f a second; %,d of %,d cells in use",
                made.readTokens(),
                read,
                made.tokens().length,
                made.tokensPerSecond(),
                usage.cellsInUse(),
                usage.cellsAllocated());
    }
}
