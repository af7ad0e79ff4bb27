package dev.kvmerge.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.report.ResultsFolder;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Every mistake gets one line that names the thing and the remedy, the right exit code, and loses nothing. */
@Tag("model")
class BadInputTest {
    private static final int FAILED = 1;
    private static final int USAGE = 2;

    @TempDir
    Path folder;

    @BeforeAll
    static void load() {
        TestModel.library();
    }

    private Cli experiment(String... more) {
        String[] args = new String[more.length + 3];
        args[0] = "experiment";
        args[1] = "--out";
        args[2] = folder.resolve("out").toString();
        System.arraycopy(more, 0, args, 3, more.length);
        return Cli.run(args);
    }

    private String file(String name, byte[] content) throws IOException {
        return Files.write(folder.resolve(name), content).toString();
    }

    @Test
    void models() throws IOException {
        experiment("-m", "nowhere.gguf").failed(FAILED, "nowhere.gguf", "no such file", "smollm2-135m");
        assertTrue(Files.notExists(folder.resolve("out")), "a refused run leaves no folder");
        experiment("-m", file("empty.gguf", new byte[0])).failed(FAILED, "empty.gguf", "is empty", "fetch it again");
        experiment("-m", file("text.gguf", "hello".getBytes())).failed(FAILED, "text.gguf", "not a GGUF file");
        byte[] head;
        try (InputStream in = Files.newInputStream(TestModel.path())) {
            head = in.readNBytes(3_000_000);
        }
        experiment("-m", file("cut.gguf", head)).failed(FAILED, "cut.gguf", "truncated");
        experiment("-m", file("header.gguf", java.util.Arrays.copyOf(head, 100)))
                .failed(FAILED, "header.gguf", "truncated", "fetch it again");
    }

    @Test
    void texts() throws IOException {
        experiment("-f", "nowhere.txt").failed(FAILED, "nowhere.txt", "alice");
        experiment("-f", file("empty.txt", new byte[0])).failed(FAILED, "empty.txt", "is empty");
        experiment("-f", file("latin.txt", new byte[] {'a', 'b', (byte) 0xe9, 'c'}))
                .failed(FAILED, "latin.txt", "not UTF-8 (byte 2)", "iconv");
        experiment("-f", file("short.txt", "Once upon a time".getBytes()))
                .failed(USAGE, "short.txt", "tokens", "longer text");
        Cli.run("perplexity", "-f", folder.resolve("short.txt").toString())
                .failed(USAGE, "at least 1024", "smaller -c");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "--tokens -5; must not be negative",
                "--tokens 100000; has 41933 tokens",
                "--offset -1; must not be negative",
                "--offset 50000; has 41933 tokens",
                "--block 0; --block must be positive",
                "--block -3; --block must be positive",
                "--compression 0; between 0 and 1",
                "--compression 1; between 0 and 1",
                "--compression NaN; between 0 and 1",
                "--compression 1.5; between 0 and 1",
                "--tokens 512 --compression 0.9; needs at least 132 cells",
                "--kv-mib 0; --kv-mib must be more than 0",
                "--kv-mib NaN; --kv-mib must be more than 0",
                "--kv-mib 8 --compression 0.5; --compression goes without --kv-mib",
                "--kv-mib 8 --fill; --fill goes without --kv-mib",
                "--tokens 512 --kv-mib 3; entropy-merged needs at least 132 cells with blocks of 128, not 128",
                "--strategies h2o@q9_0; no cells of type 'q9_0'",
                "--strategies h2o@q8_0/; no cells of type 'q8_0/'",
                "--strategies full@q4_0 -fa off; full@q4_0 has quantised V cells",
                "--strategies h2o,h2o@f16/q8_0 -fa off; leave -fa off out",
                "--strategies q8_0 --flash-attn off; q8_0 has quantised V cells",
                "--strategies full@q4_0 --kv-mib 8 -fa off; leave -fa off out",
                "--strategies h2o@q8_0/f16 --observe-queries 8; --observe-queries is of captured queries",
                "--strategies full@q4_0,h2o --observe-queries 8; --observe-queries goes with captured queries and a",
                "--strategies streaming-llm -fa on --noise-floor off --observe stop; --observe goes with a strategy",
                "--strategies h2o --observe stop --observe-queries 8; --observe-queries is of captured queries",
                "--strategies entropy-merged@q8_0 --bias exact; use -fa off, or --bias folded",
                "-t 0; -t must be 1 to 1024",
                "-ub -1; -ub must be positive",
                "--sinks -1; --sinks must not be negative",
                "--recent-share 2; --recent-share must be 0..1",
                "--threshold 0.4; --threshold has no effect on full, entropy-merged",
                "--sinks 2 --strategies full,h2o; --sinks has no effect on full, h2o",
                "--calibration auto --strategies full,snapkv; --calibration has no effect",
                "--signal diagonal; column or row",
                "--threshold 2 --signal row; --threshold must be 0..1",
                "--strategies full,streeming-llm; did you mean 'streaming-llm'",
                "--strategies entropy; did you mean 'entropy-merged'",
                "--strategies full:x=1; full has no parameters",
                "--strategies weights:type=q9; no weights of type 'q9': there are [q8_0, q5_0",
                "--strategies com.example.Mine; KVMERGE_CLASSPATH",
                "--strategies java.lang.String; is not a Strategy",
                "--bias heavy; heavy",
                "--device tpu; cpu, cuda or any",
                "-ngl 5; --device cuda",
                "-ctk q4_k; expected one of",
                "-ctv q8_0; add -fa on",
                "-ctv iq4_nl -fa off; (-ctv iq4_nl) with flash attention only",
                "-fa on --bias exact; use -fa off",
                "-fa on --strategies entropy-merged:bias=exact; use -fa off",
                "--tokens many; many",
                "--resume --overwrite; exclude each other",
                "--no-such-option; --no-such-option"
            })
    void numbersAndNames(String args, String expected) throws IOException {
        experiment(args.strip().split(" ")).failed(USAGE, expected.strip());
        assertFalse(Files.exists(folder.resolve("out/results.json")));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "--port 70000; --port must be 0 to 65535, not 70000",
                "--parallel 0; --parallel must be positive",
                "--queue -1; --queue must not be negative",
                "--timeout 0; --timeout must be positive",
                "--ctx-size -1; --ctx-size must not be negative",
                "--predict -2; --predict must be -1",
                "--max-body 0; --max-body must be 1 to 1024",
                "--max-messages 0; --max-messages must be positive",
                "--cors-origin chat.example; --cors-origin 'chat.example' is none",
                "--cells 0; (--cells) must be positive, not 0",
                "--block 0; (--block) must be positive, not 0",
                "--sinks 2 --strategy h2o; --sinks has no effect on h2o",
                "--api-key a,,b; a key is empty",
                "--api-key-file nowhere; --api-key-file nowhere cannot be read",
                "--slot-save-path nowhere; --slot-save-path nowhere is not a folder",
                "--strategy streeming-llm; did you mean 'streaming-llm'"
            })
    void servers(String args, String expected) {
        Cli.run(("serve " + args).split(" ")).failed(USAGE, expected.strip());
    }

    @Test
    @Timeout(60) // it would serve for ever
    void aPortThatIsTaken() throws IOException {
        try (ServerSocket taken = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            Cli.run("serve", "--cells", "64", "--block", "32", "-t", "1", "--port", taken.getLocalPort() + "")
                    .failed(FAILED, "cannot listen on 127.0.0.1:" + taken.getLocalPort(), "Choose another --port");
        }
    }

    @Test
    void cudaWithoutADevice() {
        experiment("--device", "cuda").failed(FAILED, "finds no CUDA device", "--device cpu");
    }

    @Test
    void memoryThatHoldsTooLittle() {
        Cli.run("generate", "-p", "a", "--kv-mib", "2")
                .failed(USAGE, "--kv-mib 2 holds no cells in q8_0 beside the block of 128", "give 6.0 or more");
        Cli.run("generate", "-p", "a", "--kv-mib", "8", "--prompt-block", "512")
                .failed(USAGE, "beside the block of 512", "a smaller --block or --prompt-block");
        Cli.run("generate", "-p", "a", "--prompt-block", "64")
                .failed(USAGE, "--prompt-block 64 is less than --block 128", "give more, or leave it out");
        Cli.run("generate", "-p", "a", "--kv-mib", "4", "-c", "300").failed(USAGE, "--cells goes without --kv-mib");
        Cli.run("serve", "--kv-mib", "8", "--parallel", "4", "-ctk", "f16")
                .failed(USAGE, "in f16 beside the block of 128 of each of 4 sequences", "give 45.0 or more");
        Cli.run("endless", "--kv-mib", "-1").failed(USAGE, "--kv-mib must be more than 0");
        Cli.run("facts", "--kv-mib", "8", "--cells", "512").failed(USAGE, "--cells goes without --kv-mib");
    }

    @Test
    void perplexityOptions() {
        Cli.run("perplexity", "-c", "0").failed(USAGE, "-c");
        Cli.run("perplexity", "--chunks", "0").failed(USAGE, "--chunks");
        Cli.run("perplexity", "--strategy", "h2o").failed(USAGE, "--cells or --compression");
        Cli.run("perplexity", "--cells", "100").failed(USAGE, "--strategy");
        Cli.run("perplexity", "--strategy", "h2o", "--cells", "600").failed(USAGE, "fit into 600 cells");
        Cli.run("perplexity", "--strategy", "entropy-merged", "--cells", "100").failed(USAGE, "at least 132 cells");
    }

    /** What tells how attention is observed has to be of use to somebody. */
    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "endless -fa on --strategies streaming-llm --observe-queries 8; --observe-queries goes with",
                "endless -fa on --strategies streaming-llm --observe stop; --observe goes with",
                "needle -fa on --strategies knorm --observe-queries 8; --observe-queries goes with",
                "perplexity -fa on --strategy streaming-llm --cells 200 --observe-queries 8; --observe-queries goes",
                "facts -fa on --strategies full,streaming-llm --observe stop; --observe goes with",
                "generate -p a --strategy expected-attention --observe-queries 8; --observe-queries goes with",
                "bench -fa on --strategies streaming-llm --observe stop; --observe goes with",
                "bench --strategies h2o,entropy-merged --bias exact --observe stop; --observe goes with",
                "ablate -fa on --strategy streaming-llm --vary sinks=2,4 --observe stop; --observe goes with",
                "ablate -fa on --strategy knorm --vary block=64 --observe-queries 8; --observe-queries goes with",
                "ablate -fa on --strategy streaming-llm --vary queries=8; does not look at the attention",
                "experiment -fa on --noise-floor off --strategies expected-attention --observe-queries 9; goes with",
                "experiment -fa on --noise-floor off --strategies expected-attention --observe stop --kv-mib 0; -mib"
            })
    void whatNothingObservesIsRefused(String arguments, String words) {
        Cli.run(arguments.split(" ")).failed(USAGE, words);
    }

    /** Commands that took these options and used none. */
    @ParameterizedTest
    @ValueSource(strings = {"analyze", "quickstart", "ablate"})
    void howLlamaCppComputesIsObeyedOrRefused(String command) {
        Cli.run(command, "-ctv", "q4_0").failed(USAGE, "add -fa on");
        Cli.run(command, "-ub", "0").failed(USAGE, "-ub must be positive");
    }

    @Test
    void ablateOptions() {
        Cli.run("ablate", "--vary", "block=64,x").failed(USAGE, "numbers of tokens");
        Cli.run("ablate", "--vary", "cells=half").failed(USAGE, "shares that stay");
        Cli.run("ablate", "--vary", "cells=1").failed(USAGE, "between 0 and 1");
        Cli.run("ablate", "--compression", "2").failed(USAGE, "between 0 and 1");
        Cli.run("ablate", "--strategy", "full").failed(USAGE, "nothing to vary");
        Cli.run("ablate", "--strategy", "h2o").failed(USAGE, "h2o has no parameter");
    }

    /** Refused by what the text's bytes allow, before a model is loaded: none is at this path. */
    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "perplexity -c 1500000000; at most; smaller -c",
                "perplexity -c 4; 512 chunks of 4; use -b 1024 or less",
                "perplexity -b 999999999; chunks of 512; use -b 131072 or less",
                "perplexity --strategy h2o --cells 300 --block 200000000; at least; block",
                "experiment --block 200000000; smaller --block; at most",
                "experiment --tokens 200000000; smaller --tokens; at most",
                "experiment --prefill 2147483000 --score 2147483000 --tokens 0; at most; --prefill",
                "endless --cells 100000000; smaller --cells; at most",
                "endless --block 200000000; at least; block",
                "endless --tokens 200000000; smaller --tokens; at most",
                "needle --tokens 100000000; --tokens can be 1048576 at most; 100000000",
                "needle --block 100000000; --block; 100000000",
                "bench -p 2147483000 -n 2147483000; at most; -p with -n",
                "bench --block 100000000; at least; block",
                "analyze --tokens 100000000; smaller --tokens; at most",
                "analyze --batch-size 100000000; smaller --batch-size; at most",
                "calibrate -f alice --tokens 2147483647 --pieces 2147483647; --pieces times --tokens; at most",
                "perplexity --strategy h2o --cells 2147483647; 2147483647 cells; fewer cells",
                "ablate --tokens 200000000; smaller --tokens; at most",
                "ablate --vary block=200000000; smaller --vary block; at most",
                "bench --sequences 256 -p 2147483000; at most; -p with -n",
                "bench --sequences 257; --sequences are 1 to 256; each",
                "generate -p x --cells 2147483647; no context has 2147483775 cells; fewer --cells",
                "generate -p x --strategy full --cells 2147483647; no context has; fewer --cells",
                "chat --block 2147483647; no context has; smaller --block",
                "chat --prompt-block 2147483647; no context has; smaller --prompt-block",
                "serve --parallel 200 --cells 10000000; 200 sequences of 10000128 cells; use fewer",
                "serve --strategy full --cells 2147483647; no context has; fewer --cells",
                "bench-server --at-once 100000; --at-once can be 256 at most; 100000",
                "bench-server -n 2147483647; no context holds 8 conversations; smaller -n"
            })
    void sizesThatNothingCanHave(String args, String expected, String more) throws IOException {
        String model = file("not-read.gguf", new byte[] {1});
        String[] given = (args.strip() + " -m " + model).split(" ");
        Cli.run(given).failed(USAGE, expected.strip(), more.strip());
    }

    @Test
    void commands() {
        Cli.run("experimnt").failed(USAGE, "experimnt");
        Cli.run("models", "fetch", "llama-9000").failed(USAGE, "llama-9000", "smollm2-135m");
        assertTrue(Cli.run().err().contains("Usage: kvmerge"));
        assertTrue(Cli.run("experiment", "--help").succeeded().out().contains("Examples:"));
    }

    @Test
    void resultsFolders() throws IOException {
        Files.writeString(folder.resolve("file"), "in the way");
        Cli.run("experiment", "--out", folder.resolve("file/out").toString())
                .failed(FAILED, "cannot write to the results folder", "--out");

        Path out = Files.createDirectory(folder.resolve("out"));
        try (ResultsFolder held = ResultsFolder.open(out)) {
            experiment().failed(FAILED, "another run", held.path().toString(), "--out");
        }
        byte[] before = "{\"runs\": [".getBytes();
        Files.write(out.resolve("results.json"), before);
        experiment().failed(USAGE, "--resume", "--overwrite");
        experiment("--resume").failed(FAILED, "broken", "--overwrite");
        Files.writeString(out.resolve("results.json"), "{}");
        experiment("--resume").failed(FAILED, "is missing", "--overwrite");
        assertTrue(Files.notExists(out.resolve(".lock")), "nor a lock in one that was there");
        assertArrayEquals("{}".getBytes(), Files.readAllBytes(out.resolve("results.json")));
    }

    @Test
    void emptyNames() {
        Cli.run("experiment", "--out", "").failed(USAGE, "--out", "the name is empty");
        Cli.run("report", "--out", "").failed(USAGE, "--out", "the name is empty");
        Cli.run("report", "").failed(USAGE, "the name is empty");
        Cli.run("experiment", "-m", "").failed(FAILED, "no model ''");
        Cli.run("experiment", "-f", "").failed(FAILED, "no text ''");
    }

    @Test
    void anotherLlamaCpp() throws IOException {
        Cli.run("quickstart", "--out", folder.resolve("q").toString(), "--llama-lib", folder.toString())
                .failed(FAILED, "already loaded from");
    }

    @Test
    void stackTracesOnRequest() {
        Cli run = experiment("-m", "nowhere.gguf", "--stacktrace");
        assertTrue(run.err().contains("\tat "), run.err());
    }

    /** What a new user typed, and what was said of something else or of nothing. */
    @ParameterizedTest
    @CsvSource(
            delimiter = ';',
            value = {
                "endless --cells 0; --cells must be positive, not 0",
                "endless --stretch 1; --stretch must be 2 or more, not 1",
                "endless --full-tokens -1; --full-tokens must be 2 or more, or 0 for none, not -1",
                "endless --cells 40; use more cells (--cells",
                "experiment --strategies h2o:recent-share=7; h2o:recent-share=7: --recent-share must be 0..1",
                "experiment --strategies h2o:recent-share=abc; recent-share is a number, not 'abc'",
                "experiment --strategies cam:receivers=1.5; receivers is a whole number, not '1.5'",
                "experiment --strategies h2o:foo=1; has no parameter 'foo': it takes recent-share=",
                "experiment --strategies h2o:recent-share; as NAME=VALUE, not 'recent-share'",
                "needle --tokens 10; --tokens must be 64 or more, not 10",
                "needle --trials 0; --trials must be positive, not 0",
                "needle --tokens 100 --block 200; --block 200 is more than the text's --tokens 100",
                "needle --depths 2; --depths must be 0..1, not [2.0]",
                "bench -p 0; -p must be 2 or more, not 0",
                "bench -n -1; -n must be 0 or more, not -1",
                "bench -r 0; -r must be positive, not 0",
                "bench --cells 200 --compression 0.5; --compression goes without --cells",
                "bench --cells 600 -p 512; fit into 600 cells",
                "bench --clock cpu -t 2; use -t 1",
                "bench --clock cpu -t 1 --device any; use it with --device cpu",
                "report nosuchdir; there is no folder nosuchdir",
                "report pom.xml; pom.xml is no folder",
                "experimnt; there is no command 'experimnt': did you mean experiment",
                "bensh -p 5; did you mean bench"
            })
    void eachMistakeIsNamed(String command, String said) {
        Cli.run(command.split(" ")).failed(USAGE, said);
    }

    @Test
    void aFolderIsNoModel() {
        experiment("-m", folder.toString()).failed(FAILED, "is a folder, and no model", "GGUF file in it");
        experiment("-f", folder.toString()).failed(FAILED, "is a folder, and no text");
    }

    @Test
    void aRefusedRunLeavesNoFolder() {
        experiment("-m", "nowhere.gguf").failed(FAILED, "nowhere.gguf");
        assertFalse(Files.exists(folder.resolve("out")));
    }

    /** An example that is wrapped by the help cannot be copied. */
    @Test
    void examplesFitALine() {
        for (picocli.CommandLine.Model.CommandSpec spec : new picocli.CommandLine(new Main())
                .getSubcommands().values().stream()
                        .map(picocli.CommandLine::getCommandSpec)
                        .toList()) {
            for (String line : spec.usageMessage().footer()) {
                assertTrue(line.length() < 80, spec.name() + ": " + line);
            }
        }
    }
}
