package dev.kvmerge.cli;

/** Where messages come from and answers go. */
interface ChatInput extends AutoCloseable {
    /** The next message, or null at the end. An empty one is nothing. */
    String read();

    /** A piece of an answer, or a line about it. */
    void print(String text);

    /** Whether a person sees it, whom a prompt and hints help. */
    boolean isTerminal();

    /** What Ctrl-C does while an answer comes; null for what it does otherwise. */
    void onInterrupt(Runnable stop);

    @Override
    void close();
}
