package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.TestModel;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What is read and what is asked, in a model's own tokens. */
@Tag("model")
class RulerTest {
    private static final ChatTemplate TEMPLATE = (messages, answer) -> new ChatTemplate.Prompt("<|im_start|>user\n"
            + messages.getFirst().content() + "<|im_end|>\n" + (answer ? "<|im_start|>assistant\n" : ""));

    private static String text(Model model, int[] tokens) {
        StringBuilder text = new StringBuilder();
        Arrays.stream(tokens).forEach(t -> text.append(new String(model.piece(t), StandardCharsets.UTF_8)));
        return text.toString();
    }

    @ParameterizedTest
    @CsvSource({"1024, false", "1024, true", "3000, false"})
    void textsEndWhereQuestionsBegin(int tokens, boolean known) {
        Model model = TestModel.model();
        Ruler ruler = new Ruler(
                model,
                TEMPLATE,
                Text.read(TestModel.downloads().resolve("texts/alice.txt")).content(),
                new Ruler.Setup(List.of(RulerTask.values()), known, Ruler.WHOLE, 1, ComputeSettings.usual()));
        List<Ruler.Item> items = ruler.items(List.of(tokens), 1);
        assertEquals(RulerTask.Kind.values().length, items.size());
        for (Ruler.Item item : items) {
            Ruler.Prompts prompts = ruler.prepare(item);
            int all = prompts.read().length + prompts.room();
            assertTrue(all <= tokens && all > tokens - 150, item + ": " + all);
            String read = text(model, prompts.read());
            for (int i = 0; i < prompts.questions().size(); i++) {
                RulerText.Question question = prompts.questions().get(i);
                String rest = text(model, prompts.rest().get(i));
                assertTrue(rest.strip().startsWith(question.question()), item + ": " + rest);
                assertTrue(rest.endsWith(question.lead()), item + ": " + rest);
                assertEquals(known, read.contains("\n- " + question.question()), item + ": " + question);
                assertFalse(rest.contains(question.expected().getFirst()), rest);
                assertTrue(read.contains(question.expected().getFirst()), item + ": " + question);
            }
        }
    }
}
