package dev.kvmerge.cli;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;

/** The options that a command was given, as its results keep them for the command that makes them again. */
final class GivenOptions {
    /** Model and text are in results by the names of their files; the rest is of the machine or the folder. */
    private static final Set<String> LEFT_OUT =
            Set.of("-m", "-f", "--out", "--resume", "--overwrite", "-v", "--stacktrace", "--llama-lib", "--rpc");

    private GivenOptions() {}

    /**
     * Values by name, as they were typed; "" of an option that takes none.
     *
     * @param without more names to leave out
     */
    static Map<String, String> of(CommandSpec command, String... without) {
        Map<String, String> given = new LinkedHashMap<>();
        for (OptionSpec option : command.commandLine().getParseResult().matchedOptions()) {
            String name = option.names()[0];
            if (!LEFT_OUT.contains(name) && !List.of(without).contains(name)) {
                boolean flag = option.arity().max() == 0;
                given.put(name, flag ? "" : list(option.originalStringValues()));
            }
        }
        return given;
    }

    /** A value that is a list. */
    static String list(List<?> values) {
        return values.stream().map(String::valueOf).collect(Collectors.joining(","));
    }
}
