package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import net.jqwik.api.lifecycle.AfterContainer;
import net.jqwik.api.lifecycle.BeforeContainer;
import org.junit.jupiter.api.Tag;
import picocli.CommandLine;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;

/**
 * Any command with any options, each with a value that is likely to be wrong: it ends with a message and no stack
 * trace. No run begins, since the model is no model; jqwik prints the seed of a find.
 */
@Tag("model")
@net.jqwik.api.Tag("model")
class OptionsFuzzTest {
    private static final List<String> VALUES = List.of(
            "0",
            "1",
            "2",
            "-1",
            "-2",
            "32",
            "64",
            "128",
            "300",
            "2048",
            "65536",
            "8388608",
            "1073741824",
            "2147483519",
            "2147483520",
            "2147483646",
            "2147483647",
            "-2147483648",
            "2147483648",
            "9223372036854775807",
            "0.5",
            "0.9",
            "1.5",
            "-0.1",
            "NaN",
            "Infinity",
            "1e400",
            "1e-400",
            "",
            " ",
            ",",
            "0.5,0.5",
            "1,2,3",
            "=",
            "a=b",
            ":",
            "h2o",
            "full",
            "h2o:",
            "h2o:recent-share=",
            "entropy-merged:bias=exact",
            "random:seed=1",
            "weights:type=q9",
            "context-shift",
            "on",
            "off",
            "auto",
            "f16",
            "q8_0",
            "cpu",
            "any",
            "none",
            "row",
            "exact",
            "block=1,x",
            "cells=0,1",
            "recent-share=0.5",
            "alice",
            ".",
            "/",
            "/dev/null",
            "nowhere/at/all",
            "\u00fc\u66f8",
            "\0",
            "%s%n",
            "1+",
            "1-inf",
            "a=http://[",
            "127.0.0.1:99999");

    private static Path folder;
    private static Path model;

    private record Given(String option, String value) {}

    @BeforeContainer
    static void write() throws IOException {
        TestModel.library();
        folder = Files.createTempDirectory("kvmerge-options");
        model = Files.write(folder.resolve("none.gguf"), new byte[] {1});
    }

    @AfterContainer
    static void delete() throws IOException {
        Files.delete(model);
        Files.delete(folder);
    }

    private static List<CommandSpec> commands() {
        return new CommandLine(new Main())
                .getSubcommands().values().stream()
                        .map(CommandLine::getCommandSpec)
                        .filter(c -> c.findOption("--model") != null)
                        .toList();
    }

    @Provide
    Arbitrary<List<String>> calls() {
        return Arbitraries.of(commands()).flatMap(command -> {
            List<OptionSpec> options = command.options().stream()
                    .filter(o -> !List.of("--model", "--out", "--help", "--version", "--llama-lib", "--stacktrace")
                            .contains(o.longestName()))
                    .toList();
            Arbitrary<Given> given = Combinators.combine(Arbitraries.of(options), Arbitraries.of(VALUES))
                    .as((option, value) ->
                            new Given(option.longestName(), option.arity().max() == 0 ? null : value));
            return given.list().ofMaxSize(5).map(all -> {
                List<String> args = new ArrayList<>(List.of(command.name(), "-m", model.toString()));
                if (command.findOption("--out") != null) {
                    args.addAll(List.of("--out", folder.resolve("out").toString()));
                }
                for (Given one : all) {
                    args.add(one.value == null ? one.option : one.option + "=" + one.value);
                }
                return args;
            });
        });
    }

    @Property(tries = 1000, shrinking = ShrinkingMode.BOUNDED)
    void itEndsWithAMessage(@ForAll("calls") List<String> args) {
        Cli run = Cli.run(args.toArray(String[]::new));
        assertTrue(run.code() == 1 || run.code() == 2, args + ": " + run);
        assertTrue(run.err().contains("kvmerge: "), args + ": " + run.err());
        assertFalse(run.err().contains("\tat "), args + ": " + run.err());
        assertFalse(run.err().contains("defect of kvmerge"), args + ": " + run.err());
        assertFalse(Files.exists(folder.resolve("out")), args + " leaves a folder");
    }
}
