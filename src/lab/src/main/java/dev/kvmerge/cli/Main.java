package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import java.io.PrintWriter;
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
            BenchCommand.class,
            NeedleCommand.class,
            AblateCommand.class,
            EndlessCommand.class,
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
            "  kvmerge experiment -m smollm2-135m -f alice --compression 0.7,0.9",
            "  kvmerge experiment -m path/to/llama-2-7b.Q4_K_M.gguf -f book.txt --out results/llama-2"
        })
public final class Main {
    private static final int FAILED = 1;
    private static final int USAGE = 2;
    static final int INTERRUPTED = 130;

    @Option(names = "--stacktrace", scope = ScopeType.INHERIT, description = "on failure, print where it came from")
    private boolean stacktrace;

    Main() {}

    public static void main(String[] args) {
        int code = run(args);
        Interrupt.finished();
        System.exit(code);
    }

    /** Runs the command line; does not end the process. */
    static int run(String... args) {
        Main main = new Main();
        CommandLine commandLine = new CommandLine(main);
        commandLine.setCaseInsensitiveEnumValuesAllowed(true);
        commandLine.setUsageHelpAutoWidth(true);
        commandLine.setParameterExceptionHandler((e, a) -> {
            CommandLine failing = e.getCommandLine();
            PrintWriter err = failing.getErr();
            err.println("kvmerge: " + oneLine(e));
            err.println("Try '" + failing.getCommandSpec().qualifiedName() + " --help'.");
            return USAGE;
        });
        commandLine.setExecutionExceptionHandler((e, failing, result) -> {
            if (e instanceof Experiment.Cancelled) {
                return INTERRUPTED;
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
        return commandLine.execute(args);
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
