package dev.kvmerge.cli;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/** Standard input that is no terminal: each line is a message. Ctrl-C ends the chat. */
final class PipedInput implements ChatInput {
    private final BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    @Override
    public String read() {
        try {
            return in.readLine();
        } catch (IOException e) {
            throw new UncheckedIOException("standard input cannot be read", e);
        }
    }

    @Override
    public void print(String text) {
        System.out.print(text);
        Output.check();
    }

    @Override
    public boolean isTerminal() {
        return false;
    }

    @Override
    public void onInterrupt(Runnable stop) {
        if (stop == null) {
            Interrupt.finished();
        } else {
            Interrupt.listen("kvmerge: stopping");
        }
    }

    @Override
    public void close() {
        Interrupt.finished();
    }
}
