package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.CellsView;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Generation;
import dev.kvmerge.engine.Session;
import dev.kvmerge.eval.Experiment;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.Locale;

/** A conversation: messages, answers, and the commands that begin with a slash. */
final class Chat implements AutoCloseable {
    private static final String HELP = """
            /cells         what the cache holds
            /save FILE     write the conversation, with its cells
            /load FILE     go on with one that was written
            /system TEXT   begin anew with another system prompt
            /clear         begin anew, with the same system prompt
            /help          this list
            /exit          end, as Ctrl-D
            Ctrl-C stops an answer. A line that ends in \\ goes on. Two slashes begin a message with one.
            """;

    private final Engine engine;
    private final ChatInput input;
    private final GenerateOptions options;
    private Session session;

    Chat(Engine engine, ChatInput input, GenerateOptions options) {
        this.engine = engine;
        this.input = input;
        this.options = options;
        session = engine.open();
    }

    /** Begins anew with a system prompt. */
    void system(String text) {
        session.system(text);
    }

    /**
     * Answers messages until they end.
     *
     * @param first a message to begin with, or null
     * @param single whether one answer is all
     */
    void run(String first, boolean single) {
        if (input.isTerminal()) {
            input.print(engine.model().description() + ", "
                    + String.format(Locale.ROOT, "%,d", engine.options().cells())
                    + " cells. /help lists the commands, Ctrl-D ends.\n");
        }
        boolean answered = first != null;
        if (answered) {
            answer(first);
        }
        while (!(single && answered)) {
            String line = input.read();
            if (line == null || line.strip().equals("/exit")) {
                return;
            }
            if (line.startsWith("//") || !line.startsWith("/")) {
                if (!line.isBlank()) {
                    answer(line.startsWith("//") ? line.substring(1) : line);
                    answered = true;
                }
            } else {
                command(line.strip());
            }
        }
    }

    private void answer(String message) {
        Session open = session;
        input.onInterrupt(open::cancel);
        try {
            Generation made = open.chat(message, options.withProgress((done, all) -> stopIfAsked(open)), text -> {
                input.print(text);
                stopIfAsked(open);
            });
            input.print(ending(made) + "\n");
        } catch (KvmergeException e) {
            if (!input.isTerminal()) {
                throw e;
            }
            input.print("kvmerge: " + e.getMessage() + "\n");
        } finally {
            input.onInterrupt(null);
        }
        if (Interrupt.requested()) {
            throw new Experiment.Cancelled();
        }
    }

    private static void stopIfAsked(Session session) {
        if (Interrupt.requested()) {
            session.cancel();
        }
    }

    private String ending(Generation made) {
        return switch (made.ended()) {
            case CANCELLED -> input.isTerminal() ? " [stopped]" : "";
            case LENGTH -> input.isTerminal() ? " [-n reached]" : "";
            default -> "";
        };
    }

    private void command(String line) {
        String name = line.split("\\s", 2)[0];
        String rest = line.substring(name.length()).strip();
        try {
            switch (name) {
                case "/help" -> input.print(HELP);
                case "/cells" -> input.print(cells());
                case "/clear" -> clear();
                case "/system" -> {
                    session.system(needed(name, "TEXT", rest));
                    input.print("A new conversation, with this system prompt.\n");
                }
                case "/save" -> {
                    Path file = file(name, rest);
                    session.save(file);
                    input.print("Written to " + file + ".\n");
                }
                case "/load" -> load(file(name, rest));
                default ->
                    throw new KvmergeException.Usage("there is no command " + name
                            + ": /help lists them, and two slashes begin a message with one");
            }
        } catch (KvmergeException e) {
            if (!input.isTerminal()) {
                throw e;
            }
            input.print("kvmerge: " + e.getMessage() + "\n");
        }
    }

    private static String needed(String command, String what, String rest) {
        if (rest.isEmpty()) {
            throw new KvmergeException.Usage(command + " wants a word behind it: " + command + " " + what);
        }
        return rest;
    }

    /** A file as a shell would take it: ~ is the home folder. */
    private static Path file(String command, String rest) {
        String name = needed(command, "FILE", rest);
        try {
            return Path.of(name.startsWith("~/") ? System.getProperty("user.home") + name.substring(1) : name);
        } catch (InvalidPathException e) {
            throw new KvmergeException.Usage(command + ": no file can have such a name: " + e.getReason());
        }
    }

    private void clear() {
        String system = session.conversation().stream()
                .filter(message -> message.role().equals("system"))
                .map(ChatMessage::content)
                .findFirst()
                .orElse(null);
        session.clear();
        if (system != null) {
            session.system(system);
        }
        input.print("A new conversation.\n");
    }

    private void load(Path file) {
        session.load(file);
        input.print("Going on with " + file + ": " + session.conversation().size() + " messages, "
                + session.tokens().length + " tokens.\n");
    }

    /** What the cache holds, in a few lines. */
    private String cells() {
        CellsView view = session.cells();
        StringBuilder out = new StringBuilder(String.format(
                Locale.ROOT,
                "%,d tokens read, %,d of %,d cells in use, %.1f MiB%n",
                view.tokens(),
                view.cellsInUse(),
                view.cellsAllocated(),
                view.bytes() / (double) (1 << 20)));
        double[] sum = new double[3];
        for (int token = 0; token < view.tokens(); token++) {
            double[] shares = view.shares(token);
            for (int i = 0; i < sum.length; i++) {
                sum[i] += shares[i];
            }
        }
        if (view.tokens() > 0) {
            out.append(String.format(
                    Locale.ROOT,
                    "of the tokens, over all layers and heads: %.0f %% kept, %.0f %% merged, %.0f %% dropped%n",
                    100 * sum[0] / view.tokens(),
                    100 * sum[1] / view.tokens(),
                    100 * sum[2] / view.tokens()));
        }
        return out.toString();
    }

    @Override
    public void close() {
        session.close();
    }
}
