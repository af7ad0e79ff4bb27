package dev.kvmerge.eval;

import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.llama.Model;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/** Conversations as a model's tokens. */
record ChatTokens(Model model, ChatTemplate template) {
    /** @param answer whether what begins the assistant's next message is added */
    int[] of(List<ChatMessage> messages, boolean answer) {
        return template.render(messages, answer).tokens(model);
    }

    /** Tokens of a conversation whose answer begins with a lead. */
    int[] led(List<ChatMessage> messages, String lead) {
        int[] begun = lead.isEmpty() ? new int[0] : model.tokenize(lead, false, false);
        return IntStream.concat(IntStream.of(of(messages, true)), IntStream.of(begun))
                .toArray();
    }

    /** How many tokens two conversations begin with alike. */
    static int shared(int[] a, int[] b) {
        int difference = Arrays.mismatch(a, b);
        return difference < 0 ? a.length : difference;
    }
}
