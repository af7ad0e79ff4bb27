package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;
import java.util.List;

/** How a model wants a conversation written. Any thread. */
@FunctionalInterface
public interface ChatTemplate {
    /**
     * Writes a conversation.
     *
     * @param addGenerationPrompt whether what begins the assistant's next message is added
     * @throws dev.kvmerge.KvmergeException if the template refuses the conversation, with its words
     */
    Prompt render(List<ChatMessage> messages, boolean addGenerationPrompt);

    /**
     * A conversation as text.
     *
     * @param text special tokens are written as their pieces, and parsed as such
     */
    record Prompt(String text) {}

    /**
     * Finds a model's template. The library asks each provider that {@link java.util.ServiceLoader} finds; kvmerge-chat
     * has one that runs the model's own (metadata tokenizer.chat_template).
     */
    interface Provider {
        /** The model's template, or null where this provider has none for it. */
        ChatTemplate of(Model model);
    }
}
