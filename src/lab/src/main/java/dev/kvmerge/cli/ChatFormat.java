package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.llama.Model;
import java.util.Objects;
import java.util.ServiceLoader;

/** How a model wants a conversation written: its own template, where something here reads it, or ChatML. */
final class ChatFormat {
    private ChatFormat() {}

    /** @throws KvmergeException.Usage of a model that is not known to take any */
    static ChatTemplate of(Model model) {
        return ServiceLoader.load(ChatTemplate.Provider.class).stream()
                .map(provider -> provider.get().of(model))
                .filter(Objects::nonNull)
                .findFirst()
                .orElseGet(() -> byHand(model));
    }

    private static ChatTemplate byHand(Model model) {
        if (model.tokenize("<|im_start|>", false, true).length == 1) {
            return (messages, generate) -> {
                StringBuilder text = new StringBuilder();
                for (ChatMessage m : messages) {
                    text.append("<|im_start|>")
                            .append(m.role())
                            .append('\n')
                            .append(m.content())
                            .append("<|im_end|>\n");
                }
                return new ChatTemplate.Prompt(text + (generate ? "<|im_start|>assistant\n" : ""));
            };
        }
        if (model.tokenize("<start_of_turn>", false, true).length == 1) { // Gemma's
            return (messages, generate) -> {
                StringBuilder text = new StringBuilder("<bos>");
                String before = "";
                for (ChatMessage m : messages) {
                    if (m.role().equals("system")) { // it has no such role
                        before = m.content() + "\n\n";
                        continue;
                    }
                    text.append("<start_of_turn>")
                            .append(m.role().equals("assistant") ? "model" : m.role())
                            .append('\n')
                            .append(before)
                            .append(m.content())
                            .append("<end_of_turn>\n");
                    before = "";
                }
                return new ChatTemplate.Prompt(text + (generate ? "<start_of_turn>model\n" : ""));
            };
        }
        throw new KvmergeException.Usage("the model " + model.path()
                + " has no chat template that is known here: use one that was trained to chat");
    }
}
