package dev.kvmerge.chat;

import dev.kvmerge.KvmergeException;

/** What a template says with {@code raise_exception}: that it does not take such a conversation. */
public final class TemplateRefusal extends KvmergeException {
    /** With the template's words. */
    public TemplateRefusal(String words) {
        super("the model's chat template refuses the conversation: " + words);
    }
}
