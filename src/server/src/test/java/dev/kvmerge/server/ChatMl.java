package dev.kvmerge.server;

import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.engine.ChatTemplate.Part;
import java.util.ArrayList;
import java.util.List;

/**
 * SmolLM2's template, without the system prompt that it adds: kvmerge-chat, which runs the model's own, is no part
 * here.
 */
final class ChatMl {
    private ChatMl() {}

    static ChatTemplate.Prompt write(List<ChatMessage> messages, boolean answer) {
        List<Part> parts = new ArrayList<>();
        for (ChatMessage message : messages) {
            parts.add(new Part("<|im_start|>", true));
            parts.add(new Part(message.role() + "\n" + message.content(), false));
            parts.add(new Part("<|im_end|>", true));
            parts.add(new Part("\n", false));
        }
        if (answer) {
            parts.add(new Part("<|im_start|>", true));
            parts.add(new Part("assistant\n", false));
        }
        return new ChatTemplate.Prompt(parts);
    }
}
