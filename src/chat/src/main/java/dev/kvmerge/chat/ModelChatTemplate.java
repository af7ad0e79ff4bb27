package dev.kvmerge.chat;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.llama.Model;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * A model's chat template. Only special tokens that the template itself writes are tokens: one whose name stands in a
 * message's content is text. For this the first letter of such a name is another one, of those for private use, while
 * the template runs. A template that looks into contents for the names of special tokens does not find them.
 */
public final class ModelChatTemplate implements ChatTemplate {
    private static final String KEY = "tokenizer.chat_template";

    private final JinjaTemplate template;
    private final SpecialNames special;
    private final Map<String, Object> variables;

    private ModelChatTemplate(Model model, String source) {
        template = JinjaTemplate.of(source);
        special = SpecialNames.of(model);
        variables = Map.of("bos_token", name(model, model.bos()), "eos_token", name(model, model.eos()));
    }

    private static String name(Model model, int token) {
        return token < 0 ? "" : new String(model.piece(token, true), StandardCharsets.UTF_8);
    }

    /**
     * A template in Jinja for a model.
     *
     * @throws KvmergeException if it ends within a tag, or has what kvmerge does not run
     */
    public static ModelChatTemplate of(Model model, String source) {
        return new ModelChatTemplate(model, source);
    }

    /** The model's own template in Jinja, or null if its file has none. */
    public static String source(Model model) {
        String source = model.metadata(KEY);
        return source == null || source.isBlank() ? null : source;
    }

    /** Gives the library each model's own template. */
    public static final class Provider implements ChatTemplate.Provider {
        @Override
        public ChatTemplate of(Model model) {
            String source = source(model);
            return source == null ? null : ModelChatTemplate.of(model, source);
        }
    }

    @Override
    public Prompt render(List<ChatMessage> messages, boolean addGenerationPrompt) {
        if (messages.isEmpty()) {
            throw new KvmergeException.Usage("the conversation is empty: give it a message");
        }
        SpecialNames.Disguise disguise = special.disguise(template.source(), messages);
        List<Map<String, Object>> given = new ArrayList<>();
        for (ChatMessage message : messages) {
            if (!message.role().matches("[A-Za-z0-9_-]{1,64}")) {
                throw new KvmergeException.Usage("a message's role is '" + message.role()
                        + "': use system, user or assistant, or another word that the model's template knows");
            }
            Map<String, Object> one = new HashMap<>();
            one.put("role", message.role());
            one.put("content", disguise.hide(message.content()));
            given.add(one);
        }
        Map<String, Object> all = new HashMap<>(variables);
        all.put("messages", given);
        all.put("add_generation_prompt", addGenerationPrompt);
        return new Prompt(special.parts(template.render(all), disguise));
    }
}
