package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import java.io.PrintWriter;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.List;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import picocli.CommandLine.ScopeType;

/** The command line. Exit codes: 0 done, 1 failed, 2 asked for something that cannot be, 130 interrupted. */
@Command(
        name = "kvmerge",
        mixinStandardHelpOptions = true,
        versionProvider = Main.Version.class,
        description = "Keeps a llama.cpp context within a fixed number of KV cells, and measures what that costs.",
        subcommands = {
            QuickstartCommand.class,
            ChatCommand.class,
            GenerateCommand.class,
            BenchCommand.class,
            BenchServerCommand.class,
            NeedleCommand.class,
            FactsCommand.class,
            RulerCommand.class,
            AblateCommand.class,
            EndlessCommand.class,
            ServeCommand.class,
            ReportCommand.class,
            DocsCommand.class,
            ExperimentCommand.class,
            PerplexityCommand.class,
            AnalyzeCommand.class,
            CalibrateCommand.class,
            ModelsCommand.class,
            CommandLine.HelpCommand.class
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge quickstart",
            "  kvmerge chat -m smollm2-135m -c 1024",
            "  kvmerge experiment -m smollm2-135m -f alice --compression 0.7,0.9",
            "  kvmerge experiment -m llama-2-7b.Q4_K_M.gguf -f book.txt --out results/llama"
        })
public final class Main {
    private static final int FAILED = 1;
    private static final int USAGE = 2;
    static final int INTERRUPTED = 130;

    @Option(names = "--stacktrace", scope = ScopeType.INHERIT, description = "on failure, print where it came from")
    private boolean stacktrace;

    Main() {}

    public static void main(String[] args) {
        System.exit(run(args));
    }

    /** Runs the command line; does not end the process. */
    static int run(String... args) {
        Main main = new Main();
        CommandLine commandLine = new CommandLine(main);
        commandLine.setCaseInsensitiveEnumValuesAllowed(true);
        commandLine.setUsageHelpAutoWidth(true);
        commandLine.registerConverter(Path.class, Main::path);
        commandLine.setParameterExceptionHandler((e, a) -> {
            CommandLine failing = e.getCommandLine();
            PrintWriter err = failing.getErr();
            err.println("kvmerge: " + (namesAFile(e) ? oneLine(unsayable(e)) : unknownCommand(e, oneLine(e))));
            err.println("Try '" + failing.getCommandSpec().qualifiedName() + " --help'.");
            return USAGE;
        });
        commandLine.setExecutionExceptionHandler((e, failing, result) -> {
            if (e instanceof Experiment.Cancelled) {
                return INTERRUPTED;
            }
            if (namesAFile(e)) {
                e = unsayable(e);
            }
            failing.getErr().println("kvmerge: " + oneLine(e));
            if (main.stacktrace) {
                e.printStackTrace(failing.getErr());
            } else if (!(e instanceof KvmergeException)) {
                failing.getErr()
                        .println("This is a defect of kvmerge: run again with --stacktrace and report what it prints.");
            }
            return e instanceof KvmergeException.Usage ? USAGE : FAILED;
        });
        if (args.length == 0) {
            commandLine.usage(commandLine.getErr());
            return USAGE;
        }
        try {
            int code = commandLine.execute(args);
            if (code == 0) {
                Output.check();
            }
            return code;
        } catch (KvmergeException e) { // of Output
            commandLine.getErr().println("kvmerge: " + oneLine(e));
            return FAILED;
        } finally {
            Interrupt.finished();
        }
    }

    /** What is said of a command that is none: those that it may have been. */
    private static String unknownCommand(CommandLine.ParameterException e, String otherwise) {
        if (!(e instanceof CommandLine.UnmatchedArgumentException unmatched)
                || unmatched.isUnknownOption()
                || !(e.getCommandLine().getCommand() instanceof Main)) {
            return otherwise;
        }
        List<String> like = unmatched.getSuggestions();
        return "there is no command '" + unmatched.getUnmatched().getFirst() + "': "
                + (like.isEmpty() ? "'kvmerge --help' lists them" : "did you mean " + String.join(" or ", like) + "?");
    }

    /** An empty name would be the current folder, which nobody means. */
    private static Path path(String name) {
        if (name.isEmpty()) {
            throw new CommandLine.TypeConversionException("the name is empty: give that of a file or folder");
        }
        return Path.of(name);
    }

    /** Whether this is of a name of a file that the JVM cannot say to the system. */
    private static boolean namesAFile(Throwable e) {
        return e instanceof InvalidPathException || (e.getCause() != null && namesAFile(e.getCause()));
    }

    private static KvmergeException.Usage unsayable(Throwable e) {
        Throwable cause = e;
        while (!(cause instanceof InvalidPathException)) {
            cause = cause.getCause();
        }
        return new KvmergeException.Usage("no file can have the name '" + ((InvalidPathException) cause).getInput()
                + "' in the encoding " + System.getProperty("sun.jnu.encoding")
                + ": set LC_ALL=C.UTF-8, or run bin/kvmerge, which does");
    }

    private static String oneLine(Throwable e) {
        if (e instanceof OutOfMemoryError) {
            return "out of Java heap memory: give more with JAVA_TOOL_OPTIONS=-Xmx8g";
        }
        String message = e.getMessage() == null
                ? e.toString()
                : e instanceof KvmergeException || e instanceof CommandLine.PicocliException
                        ? e.getMessage()
                        : e.toString();
        return message.strip().replaceAll("\\s*\\R\\s*", " ");
    }

    static final class Version implements CommandLine.IVersionProvider {
        @Override
        public String[] getVersion() {
            return new String[] {"kvmerge " + text() + " (llama.cpp " + dev.kvmerge.llama.LlamaLibrary.VERSION + ")"};
        }

        static String text() {
            String version = Main.class.getPackage().getImplementationVersion();
            return version == null ? "development" : version;
        }
    }
}
