package dev.kvmerge.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.List;
import org.jline.reader.CompletingParsedLine;
import org.jline.reader.EOFError;
import org.jline.reader.EndOfFileException;
import org.jline.reader.LineReader;
import org.jline.reader.LineReaderBuilder;
import org.jline.reader.ParsedLine;
import org.jline.reader.Parser;
import org.jline.reader.UserInterruptException;
import org.jline.terminal.Terminal;
import org.jline.terminal.TerminalBuilder;

/** A terminal, with history and lines that go on. */
final class TerminalInput implements ChatInput {
    private static final String PROMPT = "> ";

    private final Terminal terminal;
    private final LineReader reader;

    private TerminalInput(Terminal terminal, Path history) {
        this.terminal = terminal;
        LineReaderBuilder builder = LineReaderBuilder.builder()
                .terminal(terminal)
                .appName("kvmerge")
                .parser(TerminalInput::parse)
                .option(LineReader.Option.DISABLE_EVENT_EXPANSION, true) // "!" is text
                .variable(LineReader.SECONDARY_PROMPT_PATTERN, ". ");
        if (history != null) {
            builder.variable(LineReader.HISTORY_FILE, history.toAbsolutePath());
        }
        reader = builder.build();
        terminal.handle(Terminal.Signal.INT, Terminal.SignalHandler.SIG_IGN);
    }

    /** The terminal of this process, by the JDK's foreign functions, or as plain text where that cannot be. */
    static TerminalInput open(Path history) throws IOException {
        return new TerminalInput(
                TerminalBuilder.builder()
                        .system(true)
                        .ffm(true)
                        .jni(false)
                        .exec(false)
                        .dumb(true)
                        .build(),
                history);
    }

    /** A whole line is one word; after a backslash at its end it goes on. */
    private static ParsedLine parse(String line, int cursor, Parser.ParseContext context) {
        if (context == Parser.ParseContext.ACCEPT_LINE && line.endsWith("\\")) {
            throw new EOFError(-1, -1, "the line goes on");
        }
        return new CompletingParsedLine() {
            @Override
            public CharSequence escape(CharSequence candidate, boolean complete) {
                return candidate;
            }

            @Override
            public int rawWordCursor() {
                return cursor;
            }

            @Override
            public int rawWordLength() {
                return line.length();
            }

            @Override
            public String word() {
                return line;
            }

            @Override
            public int wordCursor() {
                return cursor;
            }

            @Override
            public int wordIndex() {
                return 0;
            }

            @Override
            public List<String> words() {
                return List.of(line);
            }

            @Override
            public String line() {
                return line;
            }

            @Override
            public int cursor() {
                return cursor;
            }
        };
    }

    @Override
    public String read() {
        try {
            return reader.readLine(PROMPT).replace("\\\n", "\n");
        } catch (UserInterruptException e) {
            return ""; // what was typed is gone
        } catch (EndOfFileException e) {
            return null;
        }
    }

    @Override
    public void print(String text) {
        PrintWriter out = terminal.writer();
        out.print(text);
        out.flush();
    }

    @Override
    public boolean isTerminal() {
        return true;
    }

    @Override
    public void onInterrupt(Runnable stop) {
        terminal.handle(Terminal.Signal.INT, stop == null ? Terminal.SignalHandler.SIG_IGN : signal -> stop.run());
    }

    @Override
    public void close() {
        try {
            terminal.close();
        } catch (IOException e) {
            throw new java.io.UncheckedIOException("the terminal cannot be closed", e);
        }
    }
}
