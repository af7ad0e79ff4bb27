package dev.kvmerge.cli;

import dev.kvmerge.engine.GenerateOptions;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** A conversation at the terminal. */
@Command(
        name = "chat",
        mixinStandardHelpOptions = true,
        description = {
            "Chats with a model in a fixed number of KV cells, however long the conversation gets.",
            "The model's own chat template writes it, and the system prompt is never dropped. Ctrl-C stops an answer,"
                    + " Ctrl-D ends the chat, a line that ends in \\ goes on, /help lists the commands. Without a"
                    + " terminal each line of standard input is a message."
        },
        footer = {
            "",
            "Examples:",
            "  kvmerge chat -m smollm2-135m -c 1024 -sys 'You are brief.'",
            "  echo 'What is a cell?' | kvmerge chat -m path/to/model.gguf --temp 0"
        })
final class ChatCommand implements Runnable {
    @Spec
    private CommandSpec command;

    @Mixin
    private SessionOptions session;

    @Mixin
    private SamplingOptions sampling;

    @Option(
            names = {"-sys", "--system-prompt"},
            paramLabel = "TEXT",
            description = "what the model is to obey throughout")
    private String system;

    @Option(
            names = {"-sysf", "--system-prompt-file"},
            paramLabel = "FILE",
            description = "the same, from a file of UTF-8 text")
    private Path systemFile;

    @Option(
            names = {"-p", "--prompt"},
            paramLabel = "TEXT",
            description = "the first message")
    private String prompt;

    @Option(
            names = {"-f", "--file"},
            paramLabel = "FILE",
            description = "the same, from a file of UTF-8 text")
    private Path file;

    @Option(
            names = {"-st", "--single-turn"},
            description = "end after the first answer")
    private boolean single;

    @Option(
            names = "--chat-template-file",
            paramLabel = "FILE",
            description = "a Jinja template to write the conversation with (default: the model's own)")
    private Path template;

    @Option(
            names = "--history",
            paramLabel = "FILE",
            description = "where what you type is kept for the next chat's arrow keys (default: nowhere)")
    private Path history;

    @Override
    public void run() {
        GenerateOptions options = sampling.options();
        String begin = SamplingOptions.either("-p", prompt, "-f", file);
        String obey = SamplingOptions.either("-sys", system, "-sysf", systemFile);
        boolean terminal = System.console() != null && System.console().isTerminal();
        if (!terminal) {
            StrategyOptions.refuse(command, List.of("--history"), "goes with a terminal");
        }
        try (EngineSettings.Loaded loaded = session.load(command, template);
                ChatInput input = terminal ? TerminalInput.open(history) : new PipedInput()) {
            loaded.engine().chatTemplate(); // says so now if there is none
            try (Chat chat = new Chat(loaded.engine(), input, options)) {
                if (obey != null) {
                    chat.system(obey);
                }
                chat.run(begin, single);
            }
        } catch (IOException e) {
            throw new java.io.UncheckedIOException("the terminal cannot be used", e);
        }
    }
}
