package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import picocli.CommandLine;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;

/**
 * Every command with every option that takes a value, each given one that cannot be: it is named, so the command has
 * looked at it. And how llama.cpp is told to compute reaches the contexts of each command.
 */
@Tag("model")
class OptionValuesTest {
    /** Any value of these is right. */
    private static final Set<String> FREE =
            Set.of("chat --prompt", "generate --prompt", "--system-prompt", "--alias", "--reverse-prompt", "--seed");

    /** A value that cannot be, and what the message has of it: the option's name where nothing is given. */
    private static final Map<String, String[]> WRONG = new LinkedHashMap<>();

    private static void wrong(String value, String said, String... options) {
        for (String option : options) {
            WRONG.put(option, new String[] {value, said});
        }
    }

    static {
        wrong("nowhere.gguf", "nowhere.gguf", "--model");
        wrong("0", "", "--threads", "--ubatch-size", "--block", "--batch-size", "--chunks", "--answer", "--trials");
        wrong("0", "", "--texts", "--prompt-block");
        wrong("juggling", "juggling", "--tasks");
        wrong("0", "", "--cells", "--repetitions", "--n-prompt", "--sequences", "--parallel", "--at-once");
        wrong("0", "", "--facts", "--max-body", "--max-messages", "--timeout", "--stretch", "--pieces", "--vary");
        wrong("1", "", "--prefill", "--score", "--full-tokens", "--prompt-characters", "bench-server --n-gen");
        wrong("-1", "", "--n-gen", "--sinks", "--ctx-size", "--queue", "--tokens", "--offset", "--repeat-last-n");
        wrong("-2", "", "--predict", "--temp", "--top-k", "--min-p", "--repeat-penalty");
        wrong("NaN", "", "--presence-penalty", "--frequency-penalty");
        wrong("2", "", "--top-p", "--typical", "--recent-share", "--compression", "--depths");
        wrong("-1", "position", "--position-range");
        wrong("-1", "", "--observe-queries", "--conversations");
        wrong("0", "", "--kv-mib");
        wrong("5", "-ngl 5", "--gpu-layers");
        wrong("tpu", "", "--device");
        wrong("nobody:1", "make llama-rpc", "--rpc");
        wrong("maybe", "", "--flash-attn", "--observe", "--noise-floor");
        wrong("q9", "", "--cache-type-k", "--cache-type-v");
        wrong("nowhere", "already loaded from", "--llama-lib");
        wrong("nowhere.txt", "nowhere.txt", "--file", "--grammar-file", "--system-prompt-file", "--api-key-file");
        wrong("nowhere.txt", "nowhere.txt", "--chat-template-file");
        wrong("diagonal", "", "--signal");
        wrong("0.3", "", "--threshold");
        wrong("9", "--threshold", "analyze --threshold");
        wrong("heavy", "", "--bias");
        wrong("sundial", "", "--clock");
        wrong("nowhere.json", "nowhere.json", "--calibration");
        wrong("nosuch", "nosuch", "--strategy", "--strategies");
        wrong("xml", "", "--output");
        wrong("", "the name is empty", "--out");
        wrong("no such host", "no such host", "--host");
        wrong("70000", "", "--port");
        wrong("a,,b", "a key is empty", "--api-key");
        wrong("chat.example", "", "--cors-origin");
        wrong("nowhere", "", "--slot-save-path", "--llama-server");
        wrong("x", "", "--logit-bias", "--server");
        wrong("root ::= (", "grammar", "--grammar");
        wrong("history", "--history goes with a terminal", "--history");
    }

    /** What a command needs beside, so that it comes to all of its options, and ends soon where it overlooks one. */
    private static final Map<String, String> BESIDE = Map.ofEntries(
            Map.entry("experiment", "--tokens=320 --strategies=h2o --compression=0.5 --noise-floor=off"),
            Map.entry("experiment --prefill", "--tokens=320 --strategies=h2o"),
            Map.entry("experiment --score", "--tokens=320 --strategies=h2o --prefill=128"),
            Map.entry("perplexity", "--chunks=1 -c=256"),
            Map.entry("perplexity --batch-size", "--chunks=1 -c=256"),
            Map.entry("analyze", "--tokens=128"),
            Map.entry("needle", "--tokens=128 --block=32 --strategies=h2o --trials=1 --depths=1"),
            Map.entry("bench", "-p=192 -n=2 -r=1 --strategies=h2o --compression=0.5"),
            Map.entry("bench --cells", "-p=192 -n=2 -r=1 --strategies=h2o"),
            Map.entry("endless", "--tokens=320 --cells=96 --block=32 --full-tokens=0 --strategies=h2o"),
            Map.entry("ablate", "--tokens=320 --strategy=h2o --vary=recent-share=0.5 --compression=0.5"),
            Map.entry("calibrate", "--tokens=1024 --pieces=1 -f=alice"),
            Map.entry("facts", "--facts=1 --tokens=330 --strategies=full"),
            Map.entry("facts --cells", "--facts=1 --tokens=330 --strategies=h2o"),
            Map.entry("facts --block", "--facts=1 --tokens=330 --strategies=h2o"),
            Map.entry("ruler", "--tokens=600 --texts=1 --tasks=niah_single_2 --strategies=h2o --compression=0.5"),
            Map.entry("generate", "-p=x -n=1"),
            Map.entry("generate --file", "-n=1"),
            Map.entry("chat", "-p=x -n=1 -st=true"),
            Map.entry("chat --file", "-n=1 -st=true"));

    @TempDir
    Path folder;

    @BeforeAll
    static void load() {
        TestModel.library();
    }

    private static String longest(OptionSpec option) {
        return option.longestName();
    }

    private static Stream<CommandSpec> commands() {
        return new CommandLine(new Main())
                .getSubcommands().values().stream()
                        .map(CommandLine::getCommandSpec)
                        .filter(c -> !c.usageMessage().hidden() && c.userObject() instanceof Runnable)
                        .filter(c -> !c.name().equals("help"));
    }

    private static Stream<OptionSpec> valued(CommandSpec command) {
        return command.options().stream().filter(o -> !o.hidden() && o.arity().max() > 0);
    }

    static Stream<String> names() {
        return commands().map(CommandSpec::name);
    }

    /** An option that is new has to be told here how it can be wrong. */
    @Test
    void everyOptionIsHere() {
        Set<String> missing = new TreeSet<>();
        commands().forEach(command -> valued(command)
                .map(option -> command.name() + " " + longest(option))
                .filter(name -> of(WRONG, name) == null && !isFree(name))
                .forEach(missing::add));
        assertEquals(Set.of(), missing);
    }

    private static <T> T of(Map<String, T> map, String name) {
        T own = map.get(name);
        return own != null ? own : map.get(name.substring(name.indexOf(' ') + 1));
    }

    private static boolean isFree(String name) {
        return FREE.contains(name) || FREE.contains(name.substring(name.indexOf(' ') + 1));
    }

    @ParameterizedTest
    @MethodSource("names")
    @Timeout(600) // a server would serve for ever
    void whatCannotBeIsNamed(String name) throws IOException {
        List<String> overlooked = new ArrayList<>();
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            CommandSpec command =
                    commands().filter(c -> c.name().equals(name)).findFirst().orElseThrow();
            for (OptionSpec option : valued(command).toList()) {
                String full = name + " " + longest(option);
                if (isFree(full)) {
                    continue;
                }
                List<String> args = new ArrayList<>(List.of(name));
                String beside = BESIDE.getOrDefault(full, BESIDE.getOrDefault(name, ""));
                Stream.of(beside.split(" "))
                        .filter(word ->
                                !word.isEmpty() && !List.of(option.names()).contains(word.split("=")[0]))
                        .forEach(args::add);
                addUnless(args, command, option, "--out", folder.resolve("out").toString());
                if (name.equals("serve")) {
                    addUnless(args, command, option, "--port", "" + taken.getLocalPort());
                }
                if (!name.equals("bench-server")) {
                    addUnless(args, command, option, "--threads", "1");
                } else {
                    addUnless(args, command, option, "--server", "a=http://127.0.0.1:1");
                }
                String[] wrong = of(WRONG, full);
                args.addAll(List.of(longest(option), wrong[0]));
                Cli run = Cli.run(args.toArray(String[]::new));
                boolean named = (!wrong[1].isEmpty() && run.err().contains(wrong[1]))
                        || Arrays.stream(option.names()).anyMatch(n -> says(run.err(), n));
                if (run.code() == 0 || !named || run.err().contains("defect of kvmerge")) {
                    overlooked.add(full + " " + wrong[0] + ": code " + run.code() + ", " + run.err());
                }
            }
        }
        assertEquals("", String.join("\n", overlooked));
    }

    private static boolean says(String message, String option) {
        return message.matches("(?s).*" + java.util.regex.Pattern.quote(option) + "(?![a-z-]).*");
    }

    private static void addUnless(
            List<String> args, CommandSpec command, OptionSpec option, String name, String value) {
        if (command.findOption(name) != null && !List.of(option.names()).contains(name)) {
            args.addAll(List.of(name, value));
        }
    }

    /** Commands that make contexts, as short as they can be. */
    static Stream<String> computing() {
        return Stream.of(
                "experiment --tokens 320 --strategies h2o --compression 0.5 --noise-floor off",
                "perplexity --chunks 1 -c 128",
                "perplexity --chunks 1 -c 320 --strategy h2o --cells 128",
                "analyze --tokens 128",
                "quickstart",
                "needle --tokens 160 --block 64 --strategies h2o --trials 1 --depths 1 --compression 0.5",
                "bench -p 192 -n 1 -r 1 --strategies h2o --compression 0.5 --block 64",
                "bench -p 192 -n 1 -r 1 --strategies h2o --compression 0.5 --block 64 --sequences 1,2",
                "endless --tokens 320 --cells 96 --block 64 --full-tokens 0 --strategies h2o",
                "ablate --tokens 320 --strategy h2o --vary recent-share=0.5 --compression 0.5",
                "calibrate --tokens 1024 --pieces 1 -f alice",
                "facts --facts 1 --tokens 330 --strategies full --answer 1",
                "ruler --tokens 600 --texts 1 --tasks niah_single_2 --strategies h2o --compression 0.5 --block 64",
                "generate -p x -n 1",
                "chat -p x -n 1 -st");
    }

    /** llama.cpp says itself what it was asked for. */
    @ParameterizedTest
    @MethodSource("computing")
    void howToComputeReachesTheContexts(String command) throws IOException, InterruptedException {
        List<String> args = new ArrayList<>(Arrays.asList(command.split(" ")));
        String ubatch = command.startsWith("calibrate") ? "128" : "48"; // a calibration is of whole blocks
        args.addAll(List.of("-v", "-t", "1", "-ub", ubatch, "-fa", "on", "-ctk", "f32", "-ctv", "bf16"));
        if (Stream.of("generate", "chat", "perplexity").noneMatch(command::startsWith)) {
            args.addAll(List.of("--out", folder.resolve("out").toString()));
        }
        if (command.startsWith("bench")) {
            args.subList(args.size() - 2, args.size()).clear();
        }
        Child child = Child.java(List.of(), Map.of(), args.toArray(String[]::new));
        String text = child.ended(0);
        String log = text.lines()
                .filter(l -> l.contains("n_ubatch") || l.contains("flash_attn") || l.contains("K ("))
                .collect(Collectors.joining("\n"));
        assertTrue(log.matches("(?s).*n_ubatch += " + ubatch + "\\b.*"), log);
        assertTrue(log.matches("(?s).*flash_attn += enabled.*"), log);
        assertTrue(log.matches("(?s).*K \\(f32\\).*V \\(bf16\\).*"), log);
    }
}
