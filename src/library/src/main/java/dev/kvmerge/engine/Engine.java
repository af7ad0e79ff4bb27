package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.ServiceLoader;

/** A model, and what several bounded sessions share. Any thread. Sessions are closed with it. */
public final class Engine implements AutoCloseable {
    private final Model model;
    private final boolean ownsModel;
    private final EngineOptions options;
    private final List<Session> open = new ArrayList<>(); // guarded by itself
    private final Scheduler scheduler = new Scheduler("kvmerge-engine");
    private boolean closed;
    private ChatTemplate template;

    private Engine(Model model, boolean ownsModel, EngineOptions options) {
        this.model = model;
        this.ownsModel = ownsModel;
        this.options = options;
    }

    /** Loads a model with the usual options, and llama.cpp's libraries as {@link LlamaLibrary#load()} does. */
    public static Engine load(Path model) {
        return load(model, EngineOptions.usual());
    }

    /**
     * Loads a model, and llama.cpp's libraries as {@link LlamaLibrary#load()} does. The engine closes the model.
     *
     * @throws KvmergeException as {@link Model#load}
     */
    public static Engine load(Path model, EngineOptions options) {
        Model loaded = Model.load(LlamaLibrary.load(), model, options.backend(), options.gpuLayers());
        return new Engine(loaded, true, options);
    }

    /** An engine over a model that is loaded already; it stays open when the engine is closed. */
    public static Engine of(Model model, EngineOptions options) {
        return new Engine(model, false, options);
    }

    /**
     * Opens a session, empty.
     *
     * @throws KvmergeException.Usage if all of {@link EngineOptions#sessions} are taken
     * @throws KvmergeException if model, strategy and options do not go together, or the machine has not the memory
     */
    public Session open() {
        synchronized (open) {
            checkOpen();
            if (freeSessions() == 0) {
                throw new KvmergeException.Usage("all " + options.sessions()
                        + " sessions are open: close one, or make the engine with more (EngineOptions.withSessions,"
                        + " --parallel)");
            }
            Session session = new Session(this);
            open.add(session);
            return session;
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
            return options.sessions() - open.size();
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

    void closed(Session session) {
        synchronized (open) {
            open.remove(session);
        }
    }

    private void checkOpen() {
        if (closed) {
            throw new IllegalStateException("the engine is closed");
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
            all = List.copyOf(open);
            if (all.stream().anyMatch(Session::isInCall)) {
                throw new IllegalStateException("a session is in a call: what it calls back must not close the engine");
            }
            closed = true;
        }
        all.forEach(Session::cancel);
        all.forEach(Session::close);
        scheduler.close();
        if (ownsModel) {
            model.close();
        }
    }
}
