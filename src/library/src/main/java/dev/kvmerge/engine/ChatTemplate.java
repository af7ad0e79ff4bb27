package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

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
     * A part of a written conversation.
     *
     * @param special whether it is the name of a special token, such as "&lt;|im_start|&gt;", and stands for it; else
     *     it is text, whatever is written in it
     */
    record Part(String text, boolean special) {}

    /** A written conversation. */
    record Prompt(List<Part> parts) {
        public Prompt {
            parts = List.copyOf(parts);
        }

        /** A conversation of which every special token that is written in it is parsed as such. */
        public Prompt(String text) {
            this(List.of(new Part(text, true)));
        }

        /** All of it. */
        public String text() {
            return parts.stream().map(Part::text).collect(Collectors.joining());
        }

        /** Its tokens, with BOS at their start if the model wants it and the template has not written it. */
        public int[] tokens(Model model) {
            int[] tokens = parts.stream()
                    .flatMapToInt(part -> IntStream.of(model.tokenize(part.text(), false, part.special())))
                    .toArray();
            boolean lacks = model.addsBos() && (tokens.length == 0 || tokens[0] != model.bos());
            return lacks
                    ? IntStream.concat(IntStream.of(model.bos()), IntStream.of(tokens))
                            .toArray()
                    : tokens;
        }
    }

    /**
     * Finds a model's template. The library asks each provider that {@link java.util.ServiceLoader} finds; kvmerge-chat
     * has one that runs the model's own (metadata tokenizer.chat_template).
     */
    interface Provider {
        /** The model's template, or null where this provider has none for it. */
        ChatTemplate of(Model model);
    }
}
