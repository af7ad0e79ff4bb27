package dev.kvmerge.eval;

import java.lang.foreign.MemorySegment;

/** A cache that a conversation is read into, and that can be asked without remembering what it was asked. */
interface ChatCache extends AutoCloseable {
    /** Reads a block of the conversation or less, for good. */
    void read(int[] tokens);

    /** Keeps what was read so far, the system prompt, for good. */
    void pin();

    /** Compresses what was read, as far as it is to be: questions come next. */
    void flush();

    /**
     * Makes room for a question and its answer.
     *
     * @param tokens of both
     */
    void prepare(int tokens);

    /**
     * Reads a question, or a token of its answer, until {@link #forget}.
     *
     * @return logits after the last token: F32 [vocabulary], until the next call
     */
    MemorySegment ask(int[] tokens);

    /** Forgets what was asked since the conversation was read. */
    void forget();

    /** Cells in use. */
    int used();

    /** Cells that llama.cpp has allocated. */
    int allocated();

    @Override
    void close();
}
