package dev.kvmerge.server;

import dev.kvmerge.engine.CellsUsage;
import dev.kvmerge.engine.CellsView.Fate;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Generation;
import java.nio.file.Path;
import java.util.List;
import java.util.function.Consumer;

/** What the server needs of an engine. Any thread. */
interface Inference extends AutoCloseable {
    /**
     * What the endpoints tell of the model.
     *
     * @param path of its file
     * @param description llama.cpp's
     * @param bytes of its weights
     * @param parameters number of its weights
     * @param vocabulary number of its tokens
     * @param trained positions that it was trained on
     * @param embedding dimensions of its embeddings; 0 where that is not known
     * @param template its chat template's source, or an empty text
     * @param cells that stay of a conversation
     * @param strategy that decides which
     * @param layers that are compressed
     * @param kvHeads of a layer
     */
    record Facts(
            String path,
            String description,
            long bytes,
            long parameters,
            int vocabulary,
            int trained,
            int embedding,
            String template,
            int cells,
            String strategy,
            int layers,
            int kvHeads) {}

    Facts facts();

    /**
     * A text's tokens.
     *
     * @param addSpecial whether BOS comes first, where the model wants it
     * @param parseSpecial whether special tokens that are written in it are tokens, or text
     */
    int[] tokenize(String text, boolean addSpecial, boolean parseSpecial);

    /** The bytes of a token, a special one's too; may be a part of a UTF-8 character. */
    byte[] piece(int token);

    /** Whether a token is no text: what is generated has nothing of its name. */
    boolean special(int token);

    /**
     * A conversation as the model's chat template writes it, with the beginning of an answer.
     *
     * @throws dev.kvmerge.KvmergeException if there is no template, or it refuses the conversation
     */
    Written write(List<ChatMessage> conversation);

    /** A written conversation and its tokens. */
    record Written(String text, int[] tokens) {}

    /** An empty conversation; there are as many as the server has slots. */
    Conversation open();

    /** Frees the model. */
    @Override
    void close();

    /** What the cache holds of a conversation at one moment, as {@link dev.kvmerge.engine.CellsView} says it. */
    interface Cells {
        int tokens();

        int cellsInUse();

        int cellsAllocated();

        long bytes();

        int pinned();

        Fate fate(int layer, int kvHead, int token);

        int pivot(int layer, int kvHead, int token);

        double[] shares(int token);
    }

    /** A bounded session. One call at a time, but for what says otherwise. */
    interface Conversation extends AutoCloseable {
        /** Reads what is new of a prompt and answers; what is called back, is on this thread. */
        Generation answer(Prompt prompt, GenerateOptions options, Consumer<String> onText);

        /** Every token that it has read or generated. At any time, from any thread. */
        int[] tokens();

        /** At any time, from any thread. */
        Cells cells();

        /** How full the cells are, which costs less. At any time, from any thread. */
        CellsUsage usage();

        /** Forgets everything. */
        void clear();

        void save(Path file);

        /**
         * Becomes what a file holds; stays as it is where that cannot be.
         *
         * @throws dev.kvmerge.KvmergeException if the file is none that {@link #save} wrote, or of another model
         */
        void restore(Path file);

        /** Ends {@link #answer}, from any thread. */
        void cancel();

        @Override
        void close();
    }
}
