package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.cache.Planner;
import dev.kvmerge.llama.Model;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;

/**
 * One conversation or text: a sequence with cells and a table of its own. One call at a time, any thread;
 * {@link #cancel} from any thread at any time.
 */
public final class Session implements AutoCloseable {
    private final Engine engine;
    private final Model model;
    private final CompressedContext context;
    private final CacheOptions options;
    private final ReentrantLock using = new ReentrantLock();
    private int[] tokens = new int[256];
    private int size; // tokens
    private int decoded; // of them; the last that was generated waits for the next call
    private volatile boolean cancelled;
    private boolean closed;

    Session(Engine engine) {
        this.engine = engine;
        this.model = engine.model();
        Planner planner = engine.options().strategy().apply(model);
        this.options = engine.options().cache(model, planner);
        this.context = new CompressedContext(model, planner, options);
    }

    /**
     * Reads a text. Special tokens that are written in it are text; the model's BOS comes before the first.
     *
     * @throws KvmergeException if llama.cpp cannot
     * @throws IllegalStateException if the session is closed, or in a call of another thread
     */
    public void read(String text) {
        read(text, ReadOptions.usual());
    }

    /** As above, with options. */
    public void read(String text, ReadOptions options) {
        read(tokenize(text, options.special()), options);
    }

    /** Reads tokens, as they are. */
    public void read(int[] more, ReadOptions options) {
        generate(
                more,
                GenerateOptions.greedy(0).withProgress(options.progress()).withTimeout(options.timeout()),
                text -> {});
    }

    /** The tokens of a text as this session would read it: with BOS at its start, where the model wants it. */
    public int[] tokenize(String text, boolean special) {
        if (special) {
            throw new UnsupportedOperationException("special tokens are not parsed yet");
        }
        int[] made = model.tokenize(text);
        boolean begins = made.length > 0 && model.addsBos() && made[0] == model.bos();
        return begins && size > 0 ? Arrays.copyOfRange(made, 1, made.length) : made;
    }

    /**
     * Reads a prompt and generates after it.
     *
     * @param prompt tokenised as {@link #read(String)} does; empty to go on
     * @param onText given the text as it comes, in whole characters, on this thread. What it throws ends the generation
     *     and is thrown; the session goes on from there
     * @throws KvmergeException.Usage if an option cannot be
     */
    public Generation generate(String prompt, GenerateOptions options, Consumer<String> onText) {
        return generate(prompt.isEmpty() ? new int[0] : tokenize(prompt, options.special()), options, onText);
    }

    /** As above with tokens, as they are. */
    public Generation generate(int[] prompt, GenerateOptions options, Consumer<String> onText) {
        if (options.sampling().temperature() > 0 || !options.stop().isEmpty() || options.logprobs() >= 0) {
            throw new UnsupportedOperationException("only greedy generation, without stop strings, works yet");
        }
        enter();
        engine.computing().lock();
        try {
            cancelled = false;
            return run(prompt, options, onText);
        } finally {
            engine.computing().unlock();
            using.unlock();
        }
    }

    private Generation run(int[] prompt, GenerateOptions options, Consumer<String> onText) {
        long start = System.nanoTime();
        append(prompt);
        int first = decoded;
        while (decoded < size) {
            int n = Math.min(this.options.block(), size - decoded);
            context.decode(Arrays.copyOfRange(tokens, decoded, decoded + n), false);
            decoded += n;
            if (options.progress() != null) {
                options.progress().read(decoded - first, size - first);
            }
        }
        long read = System.nanoTime();
        List<Integer> made = new ArrayList<>();
        StringBuilder text = new StringBuilder();
        Generation.Ended ended = Generation.Ended.LENGTH;
        while (made.size() < options.maxTokens()) {
            if (cancelled || Thread.interrupted()) {
                ended = Generation.Ended.CANCELLED;
                break;
            }
            if (decoded < size) {
                context.decode(Arrays.copyOfRange(tokens, decoded, size), false);
                decoded = size;
            }
            if (decoded == 0) {
                throw new KvmergeException.Usage("nothing to go on from: give a prompt");
            }
            int next = likeliest(context.logits());
            append(new int[] {next});
            made.add(next);
            if (!options.ignoreEos() && model.endsGeneration(next)) {
                ended = Generation.Ended.END_OF_GENERATION;
                break;
            }
            String piece = new String(model.piece(next), StandardCharsets.UTF_8);
            text.append(piece);
            onText.accept(piece);
        }
        return new Generation(
                text.toString(),
                made.stream().mapToInt(Integer::intValue).toArray(),
                ended,
                null,
                prompt.length,
                prompt.length,
                List.of(),
                Duration.ofNanos(read - start),
                Duration.ofNanos(System.nanoTime() - read));
    }

    private static int likeliest(MemorySegment logits) {
        int best = 0;
        for (int i = 1; i < logits.byteSize() / 4; i++) {
            if (logits.getAtIndex(ValueLayout.JAVA_FLOAT, i) > logits.getAtIndex(ValueLayout.JAVA_FLOAT, best)) {
                best = i;
            }
        }
        return best;
    }

    private void append(int[] more) {
        if (size + more.length > tokens.length) {
            tokens = Arrays.copyOf(tokens, Math.max(2 * tokens.length, size + more.length));
        }
        System.arraycopy(more, 0, tokens, size, more.length);
        size += more.length;
    }

    /**
     * Answers the last message of a conversation. What the session has read of it is recognised, and only what is new
     * is read. A history that was edited is read again, from the pinned prefix if that still agrees, else from the
     * start.
     *
     * @param conversation the whole of it, written by the engine's {@link Engine#chatTemplate}
     * @throws KvmergeException.Usage if there is no chat template
     */
    public Generation chat(List<ChatMessage> conversation, GenerateOptions options, Consumer<String> onText) {
        throw new UnsupportedOperationException("chat is not built yet");
    }

    /** Appends a user's message to the session's own conversation, and the answer. */
    public Generation chat(String user, GenerateOptions options, Consumer<String> onText) {
        throw new UnsupportedOperationException("chat is not built yet");
    }

    /**
     * Begins the session's own conversation anew with a system prompt, which is read and pinned.
     *
     * @throws KvmergeException.Usage if it would leave no cells
     */
    public void system(String prompt) {
        throw new UnsupportedOperationException("pinning is not built yet");
    }

    /**
     * Pins what was read so far: it is never dropped or merged.
     *
     * @throws KvmergeException.Usage if it would leave no cells
     */
    public void pin() {
        throw new UnsupportedOperationException("pinning is not built yet");
    }

    /** Forgets everything. */
    public void clear() {
        throw new UnsupportedOperationException("clearing is not built yet");
    }

    /** The session's own conversation, as {@link #chat} and {@link #system} have made it. */
    public List<ChatMessage> conversation() {
        throw new UnsupportedOperationException("chat is not built yet");
    }

    /** Every token that was ever read or generated. */
    public int[] tokens() {
        enter();
        try {
            return Arrays.copyOf(tokens, size);
        } finally {
            using.unlock();
        }
    }

    /** How many leading tokens of these are exactly what this session has read. */
    public int reusable(int[] of) {
        enter();
        try {
            int differs = Arrays.mismatch(of, 0, of.length, tokens, 0, size);
            return differs < 0 ? size : differs;
        } finally {
            using.unlock();
        }
    }

    /** What the cache holds now. */
    public CellsView cells() {
        enter();
        try {
            return new CellsView(
                    decoded,
                    context.used(),
                    options.allocated(),
                    decoded == 0 ? 0 : context.info().bytes(),
                    model.shape().layers(),
                    model.shape().kvHeads());
        } finally {
            using.unlock();
        }
    }

    /**
     * Writes the session to a file: cells, table, tokens, conversation and what the sampler has drawn. Written whole or
     * not at all.
     */
    public void save(Path file) {
        throw new UnsupportedOperationException("sessions cannot be saved yet");
    }

    /**
     * A second session that has read what this one has, without reading it again.
     *
     * @throws KvmergeException.Usage if all sessions of the engine are taken
     */
    public Session fork() {
        throw new UnsupportedOperationException("sessions cannot be forked yet");
    }

    /**
     * Ends the call that runs, if one does: reading stops with what was read, a generation is
     * {@link Generation.Ended#CANCELLED}. The session goes on with the next call. Any thread.
     */
    public void cancel() {
        cancelled = true;
    }

    private void enter() {
        if (!using.tryLock()) {
            throw new IllegalStateException("the session is in a call of another thread");
        }
        if (closed) {
            using.unlock();
            throw new IllegalStateException("the session is closed");
        }
    }

    /** Cancels what runs, waits for it, and gives the sequence back to the engine. */
    @Override
    public void close() {
        cancel();
        using.lock();
        try {
            if (!closed) {
                closed = true;
                context.close();
                engine.closed(this);
            }
        } finally {
            using.unlock();
        }
    }
}
