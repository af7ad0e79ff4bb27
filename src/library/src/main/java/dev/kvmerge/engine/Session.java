package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.Model;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import java.util.function.Consumer;
import java.util.function.Supplier;

/**
 * One conversation or text: a sequence with cells and a table of its own. One call at a time, on any thread;
 * {@link #cancel}, {@link #tokens}, {@link #cells} and {@link #usage} at any time. A call that is ended early (by a
 * cancel, an interrupt of its thread, its timeout, or what a callback throws) leaves what was decoded, and the next
 * call goes on from there.
 */
public final class Session implements AutoCloseable {
    private final Engine engine;
    private final Model model;
    private final Sequence sequence;
    private final History history = new History();
    private final Conversation conversation;
    private final Utf8 utf8 = new Utf8();
    private final Calls calls = new Calls();
    private final Drawings drawings;
    private volatile Saved.Pinned pinned = Saved.Pinned.NOTHING;

    Session(Engine engine, Sequence sequence) {
        this.engine = engine;
        this.model = engine.model();
        this.sequence = sequence;
        this.conversation = new Conversation(this);
        this.drawings = new Drawings(model, history);
    }

    /**
     * Reads a text. Special tokens that are written in it are text; the model's BOS comes before the first.
     *
     * @return how many tokens were read, fewer than all if {@link #cancel} or an interrupt ended it
     * @throws KvmergeException if llama.cpp cannot
     * @throws IllegalStateException if the session is closed, or in a call
     */
    public int read(String text) {
        return read(text, ReadOptions.usual());
    }

    /** As above, with options. */
    public int read(String text, ReadOptions options) {
        return read(tokenize(text, options.special()), options);
    }

    /** Reads tokens, as they are. */
    public int read(int[] tokens, ReadOptions options) {
        return generate(
                        tokens,
                        GenerateOptions.greedy(0)
                                .withProgress(options.progress())
                                .withTimeout(options.timeout()),
                        text -> {})
                .readTokens();
    }

    /**
     * The tokens of a text as this session would read it now: with BOS where nothing was read yet and the model wants
     * it.
     *
     * @param special whether special tokens that are written in the text are parsed as such
     */
    public int[] tokenize(String text, boolean special) {
        int[] tokens = model.tokenize(text, false, special);
        return history.size() == 0 ? withBos(tokens) : tokens;
    }

    private int[] withBos(int[] tokens) {
        if (!model.addsBos() || model.bos() < 0 || (tokens.length > 0 && tokens[0] == model.bos())) {
            return tokens;
        }
        int[] all = new int[tokens.length + 1];
        all[0] = model.bos();
        System.arraycopy(tokens, 0, all, 1, tokens.length);
        return all;
    }

    /**
     * Reads a prompt and generates after it. With an empty prompt and the same sampling it goes on as if the generation
     * before had not ended.
     *
     * @param prompt tokenised as {@link #read(String)} does; empty to go on
     * @param onText given the text as it comes, in whole characters, on this thread. What it throws ends the generation
     *     and is thrown
     * @throws KvmergeException.Usage if an option cannot be
     */
    public Generation generate(String prompt, GenerateOptions options, Consumer<String> onText) {
        return generate(prompt.isEmpty() ? new int[0] : tokenize(prompt, options.special()), options, onText);
    }

    /** As above with tokens, as they are. */
    public Generation generate(int[] prompt, GenerateOptions options, Consumer<String> onText) {
        Objects.requireNonNull(onText, "onText");
        return calls.run(new Call(options.timeout()), running -> run(running, prompt, prompt.length, options, onText));
    }

    /**
     * Generates after a whole text, given as tokens with all that comes before: what the session has read of it is
     * recognised, and only what is new is read, as {@link #chat(List, GenerateOptions, Consumer)} does with a
     * conversation.
     */
    public Generation complete(int[] whole, GenerateOptions options, Consumer<String> onText) {
        Objects.requireNonNull(onText, "onText");
        if (whole.length == 0) {
            throw new KvmergeException.Usage("nothing to go on from: give a prompt");
        }
        return calls.run(new Call(options.timeout()), running -> {
            checkTokens(whole);
            return conversation.complete(running, whole, List.of(), options, onText);
        });
    }

    /** Inside a call. */
    Generation run(Call running, int[] fresh, int promptTokens, GenerateOptions options, Consumer<String> onText) {
        checkTokens(fresh);
        check(options);
        int first = history.size();
        if (fresh.length > 0) {
            history.append(fresh);
            utf8.begin(new byte[0]);
            drawings.drop();
        }
        try {
            return new Generating(engine, sequence, history, utf8, running, options, onText)
                    .run(first, promptTokens, () -> drawings.of(options));
        } finally {
            engine.scheduler().leave(sequence);
        }
    }

    /** Refuses what no sampler can be made of, before anything is forgotten or read. */
    void check(GenerateOptions options) {
        if (options.maxTokens() > 0) {
            drawings.check(options);
        }
    }

    private void checkTokens(int[] tokens) {
        for (int token : tokens) {
            if (token < 0 || token >= model.vocabularySize()) {
                throw new KvmergeException.Usage("the prompt's token " + token
                        + " is outside the model's vocabulary of " + model.vocabularySize());
            }
        }
    }

    /**
     * Answers the last message of a conversation. What the session has read of it is recognised by its tokens, and only
     * what is new is read, also after old tokens were dropped or merged. Where the end differs, as after a stop string,
     * what was decoded since the last compression is taken back, and at most a block is read again. A history that was
     * edited before that is read again, from the pinned prefix if that still agrees, else from the start. System
     * messages at the start are pinned, where that leaves cells enough.
     *
     * @param messages the whole conversation, which the engine's {@link Engine#chatTemplate} writes
     * @throws KvmergeException.Usage if there is no chat template
     */
    public Generation chat(List<ChatMessage> messages, GenerateOptions options, Consumer<String> onText) {
        Objects.requireNonNull(onText, "onText");
        return calls.run(
                new Call(options.timeout()), running -> conversation.answer(running, messages, options, onText));
    }

    /** Appends a user's message to the session's own conversation, and the answer, as far as it came. */
    public Generation chat(String user, GenerateOptions options, Consumer<String> onText) {
        Objects.requireNonNull(onText, "onText");
        return calls.run(new Call(options.timeout()), running -> conversation.answer(running, user, options, onText));
    }

    /**
     * Begins the session's own conversation anew with a system prompt, which is read and pinned.
     *
     * @throws KvmergeException.Usage if it would leave the strategy too few cells
     */
    public void system(String prompt) {
        calls.run(new Call(null), running -> {
            conversation.begin(running, prompt);
            return null;
        });
    }

    /** The session's own conversation, as {@link #system} and {@link #chat} have made it. */
    public List<ChatMessage> conversation() {
        return conversation.messages();
    }

    /**
     * Pins what was read so far: it is never dropped or merged.
     *
     * @throws KvmergeException.Usage if it would leave the strategy too few cells; nothing changes then
     */
    public void pin() {
        calls.run(new Call(null), running -> {
            pin(running);
            return null;
        });
    }

    void pin(Call running) {
        Generation last = run(running, new int[0], 0, GenerateOptions.greedy(0), text -> {}); // what was generated last
        if (last.ended() != Generation.Ended.LENGTH) {
            throw new KvmergeException("pinning was cancelled: nothing has changed");
        }
        if (history.decoded() == 0) { // there is nothing to pin
            return;
        }
        pinned = engine.scheduler().call(() -> {
            CompressedContext context = sequence.context();
            context.pin();
            return new Saved.Pinned(history.decoded(), context.state());
        });
    }

    /** Forgets everything. */
    public void clear() {
        calls.run(new Call(null), running -> {
            forget();
            conversation.forget();
            return null;
        });
    }

    /** What comes is no going on of the last generation. */
    void drawAnew() {
        drawings.drop();
    }

    void forget() {
        engine.scheduler().call(() -> {
            sequence.clear();
            return true;
        });
        history.backTo(0);
        utf8.begin(new byte[0]);
        drawings.drop();
        pinned = Saved.Pinned.NOTHING;
    }

    /** Whether nothing can go on from its cells, which only forgetting them repairs. */
    boolean isBroken() {
        return sequence.context().isBroken();
    }

    /**
     * How many tokens {@link #takeBack} leaves; 0 where layers with sliding windows may have let go of what it needs.
     */
    int settled() {
        CompressedContext context = sequence.context();
        boolean goesBack = model.slidingWindow() == 0 || engine.scheduler().call(context::canTakeBack);
        return goesBack ? context.position() - context.recent() : 0;
    }

    /** Takes back what was decoded since the last compression. */
    void takeBack() {
        backTo(() -> {
            sequence.context().takeBack();
            return sequence.context().position();
        });
    }

    /** Goes back to the pinned prefix. */
    void backToPinned() {
        backTo(() -> {
            sequence.context().restore(pinned.state());
            return pinned.tokens();
        });
    }

    /** @param goingBack done between two batches; returns the tokens that are left */
    private void backTo(Supplier<Integer> goingBack) {
        int left = engine.scheduler().call(() -> {
            int tokens = goingBack.get();
            sequence.setLogits(new float[0]);
            return tokens;
        });
        history.backTo(left);
        utf8.begin(new byte[0]);
        drawings.drop();
    }

    Saved.Pinned pinned() {
        return pinned;
    }

    Engine engine() {
        return engine;
    }

    History history() {
        return history;
    }

    Sequence sequence() {
        return sequence;
    }

    /** Every token that was ever read or generated. */
    public int[] tokens() {
        return history.tokens();
    }

    /** How many leading tokens of these are exactly what this session has read or generated. */
    public int reusable(int[] tokens) {
        return history.agreeing(tokens);
    }

    /** What the cache holds now. */
    public CellsView cells() {
        return engine.scheduler().call(() -> {
            calls.checkOpen();
            return CellsView.of(engine, sequence, pinned.tokens());
        });
    }

    /** How full the cells are now; costs less than {@link #cells}, which copies what became of each token. */
    public CellsUsage usage() {
        return engine.scheduler().call(() -> {
            calls.checkOpen();
            return CellsUsage.of(engine, sequence, pinned.tokens());
        });
    }

    /**
     * Writes the session to a file: cells, table, tokens, conversation and what the sampler has drawn. It is written
     * whole or not at all.
     *
     * @throws KvmergeException if it cannot be written
     */
    public void save(Path file) {
        calls.run(new Call(null), running -> {
            SessionFile.write(file, engine, this);
            return null;
        });
    }

    /**
     * Takes over what {@link #save} wrote of a session, in place of what this one has.
     *
     * @throws KvmergeException if the file is truncated, of another model, other options or another version; nothing
     *     changes then
     */
    public void load(Path file) {
        calls.run(new Call(null), running -> {
            SessionFile.read(file, engine, this);
            return null;
        });
    }

    /**
     * A second session that has read what this one has, without reading it again.
     *
     * @throws KvmergeException.Usage if all sessions of the engine are taken
     */
    public Session fork() {
        return calls.run(new Call(null), running -> {
            Session other = engine.open();
            try {
                engine.scheduler().call(() -> {
                    sequence.context().forkInto(other.sequence.context());
                    return true;
                });
                Saved saved = saved();
                other.takeOver(saved, Drawing.of(model, saved));
                return other;
            } catch (RuntimeException | Error e) {
                other.close();
                throw e;
            }
        });
    }

    Saved saved() {
        return new Saved(
                history.tokens(),
                history.decoded(),
                history.generated(),
                utf8.rest(),
                sequence.hasLogits() ? sequence.logits().toArray(ValueLayout.JAVA_FLOAT) : new float[0],
                pinned,
                conversation.messages(),
                drawings.state());
    }

    /** After the context has the state. */
    void takeOver(Saved saved, Drawing drawing) {
        history.begin(saved.tokens(), saved.decoded(), saved.generated());
        utf8.begin(saved.rest());
        sequence.setLogits(saved.logits());
        pinned = saved.pinned();
        conversation.set(saved.messages());
        drawings.resume(drawing);
    }

    /**
     * Ends the call that runs, if one does: reading stops with what was read, a generation is
     * {@link Generation.Ended#CANCELLED}. Any thread.
     */
    public void cancel() {
        if (calls.cancel()) {
            engine.scheduler().wake(sequence);
        }
    }

    /** Cancels what runs, waits for it, and gives the sequence back to the engine. */
    @Override
    public void close() {
        calls.close(this::cancel, () -> {
            drawings.drop();
            try {
                engine.scheduler().callLast(sequence::close);
            } finally {
                engine.closed(sequence);
            }
        });
    }

    /** Whether this thread is in a call of it. */
    boolean isInCall() {
        return calls.isMine();
    }
}
