package dev.kvmerge.cli;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import picocli.CommandLine;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;

/** docs/options.md: every command and option, as --help has them. */
final class OptionsPage {
    private static final int COMMON = 5; // an option of as many commands is described once for all

    private OptionsPage() {}

    static String of(CommandLine kvmerge) {
        Map<String, CommandSpec> commands = new LinkedHashMap<>();
        collect(kvmerge.getCommandSpec(), "kvmerge", commands);
        Map<String, List<String>> having = new LinkedHashMap<>();
        commands.forEach((name, spec) -> shown(spec).forEach(o -> having.computeIfAbsent(row(o), r -> new ArrayList<>())
                .add(name)));
        StringBuilder text = new StringBuilder();
        text.append("""
                <!-- Written by 'make docs' from the command line itself: do not edit. -->
                # Commands and options

                Names of options are llama.cpp's where it has them. `--help` on a command shows the same, with an \
                example.
                """);
        commands.forEach((name, spec) -> text.append(section(name, spec, having)));
        text.append("\n## Common options\n\nThese mean the same in every command that has them.\n\n");
        Map<String, String> common = new TreeMap<>(String.CASE_INSENSITIVE_ORDER);
        having.forEach((row, names) -> {
            if (names.size() >= COMMON) {
                common.put(row.replaceAll("^\\| `-+", ""), row);
            }
        });
        return text.append(table(common.values())).toString();
    }

    private static void collect(CommandSpec spec, String name, Map<String, CommandSpec> commands) {
        commands.put(name, spec);
        spec.subcommands().forEach((sub, line) -> {
            boolean alias = !sub.equals(line.getCommandName());
            if (!alias
                    && !sub.equals("help")
                    && !line.getCommandSpec().usageMessage().hidden()) {
                collect(line.getCommandSpec(), name + " " + sub, commands);
            }
        });
    }

    private static List<OptionSpec> shown(CommandSpec spec) {
        return spec.options().stream().filter(o -> !o.hidden()).toList();
    }

    private static String section(String name, CommandSpec spec, Map<String, List<String>> having) {
        StringBuilder text = new StringBuilder();
        text.append("\n## ").append(name).append("\n\n");
        for (String line : spec.usageMessage().description()) {
            text.append(wrapped(line));
        }
        List<String> own = new ArrayList<>();
        List<String> common = new ArrayList<>();
        for (OptionSpec option : shown(spec)) {
            if (having.get(row(option)).size() >= COMMON) {
                common.add("`" + option.shortestName() + "`");
            } else {
                own.add(row(option));
            }
        }
        spec.positionalParameters().forEach(p -> own.add(row(p.paramLabel(), String.join(" ", p.description()))));
        text.append(own.isEmpty() ? "" : "\n" + table(own));
        return text.append("\n")
                .append(wrapped("[Common](#common-options): " + String.join(" ", common) + "."))
                .toString();
    }

    private static String row(OptionSpec option) {
        String names = String.join(", ", option.names());
        boolean flag = option.arity().max() == 0;
        return row(names + (flag ? "" : " " + option.paramLabel()), String.join(" ", option.description()));
    }

    private static String row(String name, String description) {
        return "| `" + name.replace("|", "\\|") + "` | "
                + String.format(description).replace("|", "\\|") + " |\n";
    }

    private static String table(Collection<String> rows) {
        return rows.stream().collect(Collectors.joining("", "| option | what it does |\n| :-- | :-- |\n", ""));
    }

    private static String wrapped(String line) {
        StringBuilder text = new StringBuilder();
        int column = 0;
        for (String word : line.split(" ")) {
            if (column > 0 && column + 1 + word.length() > 120) {
                text.append('\n');
                column = 0;
            }
            text.append(column > 0 ? " " : "").append(word);
            column += (column > 0 ? 1 : 0) + word.length();
        }
        return text.append('\n').toString();
    }
}
