package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.tngtech.archunit.core.domain.JavaAccess;
import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.domain.JavaCodeUnit;
import com.tngtech.archunit.core.domain.JavaFieldAccess;
import com.tngtech.archunit.core.importer.ClassFileImporter;
import dev.kvmerge.llama.ContextOptions.CellType;
import java.lang.reflect.Field;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import picocli.CommandLine;
import picocli.CommandLine.Model.ArgSpec;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;

/** No option is accepted and ignored: the code that a command runs reads each of its options. */
@Tag("fast")
class OptionsTest {
    private static final JavaClasses CLASSES = new ClassFileImporter().importPackages("dev.kvmerge.cli");

    private static Stream<CommandSpec> commands(CommandSpec of) {
        return Stream.concat(
                Stream.of(of), of.subcommands().values().stream().flatMap(c -> commands(c.getCommandSpec())));
    }

    @Test
    void everyOptionOfEveryCommandIsRead() throws ReflectiveOperationException {
        List<String> ignored = new ArrayList<>();
        int looked = 0;
        for (CommandSpec command :
                commands(new CommandLine(new Main()).getCommandSpec()).toList()) {
            if (!command.userObject().getClass().getName().startsWith("dev.kvmerge")
                    || !(command.userObject() instanceof Runnable)) {
                continue; // prints help, and has no options of its own
            }
            Set<String> read = fieldsReadBy(command.userObject().getClass());
            for (ArgSpec argument : command.args()) {
                if (argument.userObject() instanceof Field field
                        && field.getDeclaringClass().getName().startsWith("dev.kvmerge")
                        && field.getDeclaringClass() != Main.class) { // Main reads its own, for all commands
                    looked++;
                    if (!read.contains(name(field.getDeclaringClass().getName(), field.getName()))) {
                        ignored.add(command.qualifiedName() + " " + argument.paramLabel() + " " + field);
                    }
                }
            }
        }
        assertEquals(List.of(), ignored);
        assertTrue(looked > 100, "looked at " + looked);
    }

    /** A command that takes an option and forgets it is found. */
    @Test
    void whatNobodyReadsIsFound() {
        assertTrue(fieldsReadBy(AnalyzeCommand.class).contains(name(ModelOptions.class.getName(), "ubatch")));
        assertFalse(fieldsReadBy(ModelsCommand.class).contains(name(ModelOptions.class.getName(), "ubatch")));
    }

    private static String name(String owner, String field) {
        return owner + "." + field;
    }

    /** Fields that are read by what a command's run() calls, in the package of the command line. */
    private static Set<String> fieldsReadBy(Class<?> command) {
        Set<String> fields = new HashSet<>();
        Set<JavaCodeUnit> seen = new HashSet<>();
        Deque<JavaCodeUnit> open = new ArrayDeque<>();
        JavaClass start = CLASSES.get(command);
        start.getMethods().stream().filter(m -> m.getName().equals("run")).forEach(open::add);
        while (!open.isEmpty()) {
            JavaCodeUnit unit = open.pop();
            if (!seen.add(unit)) {
                continue;
            }
            for (JavaFieldAccess access : unit.getFieldAccesses()) {
                if (access.getAccessType() == JavaFieldAccess.AccessType.GET) {
                    fields.add(name(
                            access.getTargetOwner().getName(),
                            access.getTarget().getName()));
                }
            }
            for (JavaAccess<?> call : unit.getAccessesFromSelf()) {
                if (call.getTarget().resolveMember().orElse(null) instanceof JavaCodeUnit called
                        && called.getOwner().getPackageName().equals("dev.kvmerge.cli")) {
                    open.add(called);
                }
            }
        }
        return fields;
    }

    /** Read, but of no use beside the others: refused. */
    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "perplexity --block 64; --block goes with --strategy",
                "perplexity --sinks 2; --sinks goes with --strategy",
                "perplexity --bias none; --bias goes with --strategy",
                "perplexity --strategy full --recent-share 0.3; --recent-share goes with --strategy",
                "perplexity --strategy h2o --cells 300 -b 512; -b goes without --strategy",
                "perplexity --strategy h2o --cells 300 --kl-divergence --chunks 1; --chunks goes without --kl-diverg",
                "perplexity --observe stop; --observe goes with --strategy",
                "experiment --score 100; --score goes with --prefill",
                "experiment --prefill 512 --block 64; --block goes without --prefill",
                "experiment --observe stop --strategies streaming-llm --noise-floor off; --observe goes with",
                "experiment --strategies full --compression 0.5; --compression goes with a strategy other than full",
                "bench --strategies full --compression 0.5; --compression goes with a strategy other than full",
                "needle --strategies full --compression 0.5; --compression goes with a strategy other than full",
                "ablate --vary cells=0.1,0.3 --compression 0.5; --compression goes with other parameters than cells",
                "endless --full-tokens 1; --full-tokens must be 2 or more",
                "generate -f pom.xml --no-escape; --escape goes with -p",
                "chat --history h -p x -st; --history goes with a terminal",
                "bench-server --server a=http://127.0.0.1:1 -t 2; -t goes without --server",
                "bench-server --server a=http://127.0.0.1:1 --cells 100; --cells goes without --server",
                "bench-server --server a=http://127.0.0.1:1 -m smollm2-135m; -m goes with {model}",
                "needle --junk -f alice; -f goes without --junk"
            })
    void whatWouldHaveNoEffectIsRefused(String args, String expected) {
        Cli.run(args.strip().split(" ")).failed(2, expected.strip());
    }

    /** CellTypesTest and the native tests hold that each of them works. */
    @Test
    void helpOffersTheTypesOfCellsThatThereAre() {
        List<String> all =
                Arrays.stream(CellType.values()).map(CellType::text).sorted().toList();
        for (CommandSpec command :
                commands(new CommandLine(new Main()).getCommandSpec()).toList()) {
            OptionSpec keys = command.findOption("-ctk");
            if (keys != null) {
                String offered = String.join("", keys.description()).replaceAll("type of the K cells: |\\(.*", "");
                assertEquals(
                        all,
                        Arrays.stream(offered.strip().split(", | or ")).sorted().toList(),
                        command.qualifiedName());
            }
        }
    }
}
