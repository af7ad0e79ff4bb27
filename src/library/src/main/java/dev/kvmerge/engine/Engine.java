package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.Planner;
import dev.kvmerge.cache.SequenceGroup;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.ServiceLoader;

/** A model, and what several bounded sessions share. Any thread. Sessions are closed with it. */
public final class Engine implements AutoCloseable {
    private final Model model;
    private final boolean ownsModel;
    private final EngineOptions options;
    private final Session[] open; // by their sequences; guarded by itself
    private final Planner planner; // for the record; each sequence has its own
    private final SequenceGroup group;
    private final Scheduler scheduler;
    private boolean closed;
    private ChatTemplate template;

    private Engine(Model model, boolean ownsModel, EngineOptions options) {
        this.model = model;
        this.ownsModel = ownsModel;
        this.options = options;
        this.planner = options.strategy().apply(model);
        this.group = new SequenceGroup(
                model, i -> options.strategy().apply(model), options.cache(model, planner), options.sessions());
        this.open = new Session[options.sessions()];
        this.scheduler = new Scheduler(group, "kvmerge-engine");
    }

    /** Loads a model with the usual options, and llama.cpp's libraries as {@link LlamaLibrary#load()} does. */
    public static Engine load(Path model) {
        return load(model, EngineOptions.usual());
    }

    /**
     * Loads a model, and llama.cpp's libraries as {@link LlamaLibrary#load()} does. The engine closes the model.
     *
     * @throws KvmergeException as {@link Model#load}, and if model, strategy and options do not go together, or the
     *     machine has not the memory for so many sessions
     */
    public static Engine load(Path model, EngineOptions options) {
        Model loaded = Model.load(LlamaLibrary.load(), model, options.backend(), options.gpuLayers());
        try {
            return new Engine(loaded, true, options);
        } catch (RuntimeException | Error e) {
            loaded.close();
            throw e;
        }
    }

    /** An engine over a model that is loaded already; it stays open when the engine is closed. */
    public static Engine of(Model model, EngineOptions options) {
        return new Engine(model, false, options);
    }

    /**
     * Opens a session, empty.
     *
     * @throws KvmergeException.Usage if all of {@link EngineOptions#sessions} are taken
     */
    public Session open() {
        synchronized (open) {
            if (closed) {
                throw new IllegalStateException("the engine is closed");
            }
            for (int i = 0; i < open.length; i++) { // neighbours are computed together for less
                if (open[i] == null) {
                    open[i] = new Session(this, new Sequence(i, group.sequence(i), model.vocabularySize()));
                    return open[i];
                }
            }
            throw new KvmergeException.Usage("all " + options.sessions()
                    + " sessions are open: close one, or make the engine with more (EngineOptions.withSessions,"
                    + " --parallel)");
        }
    }

    /**
     * A session from a file that {@link Session#save} wrote.
     *
     * @throws KvmergeException if the file is truncated, of another model or other options, or of another version
     */
    public Session restore(Path saved) {
        Session session = open();
        try {
            session.load(saved);
            return session;
        } catch (RuntimeException | Error e) {
            session.close();
            throw e;
        }
    }

    public Model model() {
        return model;
    }

    public EngineOptions options() {
        return options;
    }

    /** Sessions that can still be opened. */
    public int freeSessions() {
        synchronized (open) {
            return (int) Arrays.stream(open).filter(Objects::isNull).count();
        }
    }

    /**
     * The model's chat template.
     *
     * @throws KvmergeException.Usage if there is none, with what to add or give
     */
    public ChatTemplate chatTemplate() {
        synchronized (open) {
            if (template == null) {
                template = findTemplate();
            }
            return template;
        }
    }

    private ChatTemplate findTemplate() {
        boolean any = false;
        for (ChatTemplate.Provider provider : ServiceLoader.load(ChatTemplate.Provider.class)) {
            any = true;
            ChatTemplate found = provider.of(model);
            if (found != null) {
                return found;
            }
        }
        throw new KvmergeException.Usage(
                any
                        ? "the model " + model.path() + " has no chat template (tokenizer.chat_template): give one with"
                                + " Engine.useChatTemplate (--chat-template-file), or use generate"
                        : "nothing here reads chat templates: add the dependency dev.kvmerge:kvmerge-chat, or give a"
                                + " template with Engine.useChatTemplate");
    }

    /** Has conversations written by a template other than the model's. */
    public void useChatTemplate(ChatTemplate other) {
        synchronized (open) {
            template = Objects.requireNonNull(other, "other");
        }
    }

    Scheduler scheduler() {
        return scheduler;
    }

    CacheOptions cache() {
        return group.options();
    }

    /** What its sequences are compressed by. */
    String strategy() {
        return planner.name();
    }

    /** A session has given its sequence back. */
    void closed(Sequence sequence) {
        synchronized (open) {
            open[sequence.number()] = null;
        }
    }

    /** Cancels what runs, waits for it, and frees the sessions and the model, if the engine has loaded it. */
    @Override
    public void close() {
        List<Session> all;
        synchronized (open) {
            if (closed) {
                return;
            }
            all = Arrays.stream(open).filter(Objects::nonNull).toList();
            if (all.stream().anyMatch(Session::isInCall)) {
                throw new IllegalStateException("a session is in a call: what it calls back must not close the engine");
            }
            closed = true;
        }
        all.forEach(Session::cancel);
        all.forEach(Session::close);
        scheduler.close();
        group.close();
        if (ownsModel) {
            model.close();
        }
    }
}
