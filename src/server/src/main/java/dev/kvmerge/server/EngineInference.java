package dev.kvmerge.server;

import dev.kvmerge.engine.CellsUsage;
import dev.kvmerge.engine.CellsView;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Generation;
import dev.kvmerge.engine.Session;
import dev.kvmerge.llama.Model;
import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import java.util.function.Consumer;

/** The engine, as the server needs it. */
final class EngineInference implements Inference {
    private final Engine engine;
    private final Facts facts;

    EngineInference(Engine engine) {
        this.engine = engine;
        Model model = engine.model();
        this.facts = new Facts(
                model.path().toString(),
                model.description(),
                model.bytes(),
                model.parameters(),
                model.vocabularySize(),
                model.trainedContext(),
                embedding(model),
                Objects.requireNonNullElse(model.metadata("tokenizer.chat_template"), ""),
                engine.options().cells(),
                engine.options().strategy().apply(model).name(),
                model.shape().layers(),
                model.shape().kvHeads());
    }

    private static int embedding(Model model) {
        String dimensions = model.metadata(model.metadata("general.architecture") + ".embedding_length");
        return dimensions == null ? 0 : Integer.parseInt(dimensions);
    }

    @Override
    public Facts facts() {
        return facts;
    }

    @Override
    public int[] tokenize(String text, boolean addSpecial, boolean parseSpecial) {
        return engine.model().tokenize(text, addSpecial, parseSpecial);
    }

    @Override
    public byte[] piece(int token) {
        return engine.model().piece(token, true);
    }

    @Override
    public boolean special(int token) {
        return engine.model().piece(token).length == 0;
    }

    @Override
    public Written write(List<ChatMessage> conversation) {
        ChatTemplate.Prompt prompt = engine.chatTemplate().render(conversation, true);
        return new Written(prompt.text(), prompt.tokens(engine.model()));
    }

    @Override
    public Conversation open() {
        return new Open(engine.open());
    }

    @Override
    public void close() {
        engine.close();
    }

    private final class Open implements Conversation {
        private final Session session;

        private Open(Session session) {
            this.session = session;
        }

        @Override
        public Generation answer(Prompt prompt, GenerateOptions options, Consumer<String> onText) {
            if (!prompt.cached()) {
                session.clear();
            }
            if (prompt.messages() != null) {
                return session.chat(prompt.messages(), options, onText);
            }
            return session.complete(prompt.tokens(), options, onText);
        }

        @Override
        public int[] tokens() {
            return session.tokens();
        }

        @Override
        public Cells cells() {
            return new Picture(session.cells());
        }

        @Override
        public CellsUsage usage() {
            return session.usage();
        }

        @Override
        public void clear() {
            session.clear();
        }

        @Override
        public void save(Path file) {
            session.save(file);
        }

        @Override
        public void restore(Path file) {
            session.load(file);
        }

        @Override
        public void cancel() {
            session.cancel();
        }

        @Override
        public void close() {
            session.close();
        }
    }

    private record Picture(CellsView of) implements Cells {
        @Override
        public int tokens() {
            return of.tokens();
        }

        @Override
        public int cellsInUse() {
            return of.cellsInUse();
        }

        @Override
        public int cellsAllocated() {
            return of.cellsAllocated();
        }

        @Override
        public long bytes() {
            return of.bytes();
        }

        @Override
        public int pinned() {
            return of.pinned();
        }

        @Override
        public CellsView.Fate fate(int layer, int kvHead, int token) {
            return of.fate(layer, kvHead, token);
        }

        @Override
        public int pivot(int layer, int kvHead, int token) {
            return of.pivot(layer, kvHead, token);
        }

        @Override
        public double[] shares(int token) {
            return of.shares(token);
        }
    }
}
