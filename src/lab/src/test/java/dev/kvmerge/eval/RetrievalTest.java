package dev.kvmerge.eval;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import dev.kvmerge.GgufPatch;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.SmallVocabulary;
import dev.kvmerge.TestModel;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.Model;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Text, question and answer are one text, whatever the tokenizer adds to a text of its own. */
@Tag("model")
class RetrievalTest {
    private static final String TEXT = "the old house. it is old.";
    private static final String QUESTION = "\nthe house is";
    private static final String ANSWER = " 42 17";

    @TempDir
    Path folder;

    private Model sentencePiece(boolean spaceInFront, boolean bos, boolean eos) throws IOException {
        Path file = SmallVocabulary.write(folder.resolve("spm.gguf"), spaceInFront, bos, eos);
        return Model.load(TestModel.library(), file, Backend.CPU, 0);
    }

    private static String text(Model model, int[] tokens) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        for (int token : tokens) {
            bytes.writeBytes(model.piece(token));
        }
        return bytes.toString(StandardCharsets.UTF_8);
    }

    @ParameterizedTest
    @CsvSource({"true,true,false", "true,true,true", "false,true,true", "true,false,true", "false,false,false"})
    void sentencePieceAddsNothingInTheMiddle(boolean spaceInFront, boolean bos, boolean eos) throws IOException {
        try (Model model = sentencePiece(spaceInFront, bos, eos)) {
            assertEquals(bos, model.tokenize(TEXT)[0] == 1, "the model is what the test wants");
            assertEquals(eos, Arrays.stream(model.tokenize(TEXT)).anyMatch(t -> t == 2));
            Retrieval.Parts parts = Retrieval.cut(model, TEXT, QUESTION, ANSWER);
            int[] all = IntStream.of(parts.text()).toArray();
            assertEquals((spaceInFront ? " " : "") + TEXT, text(model, all).replace("<s>", ""));
            assertEquals(QUESTION, text(model, parts.question()));
            assertEquals(ANSWER, text(model, parts.answer()), "one space, not two");
            for (int[] part : List.of(parts.text(), parts.question(), parts.answer())) {
                assertFalse(Arrays.stream(part).anyMatch(t -> t == 2), "no EOS in a text that goes on");
            }
            assertFalse(Arrays.stream(Text.tokens(model, TEXT)).anyMatch(t -> t == 2));
            assertEquals(bos ? 1 : 0, Text.tokens(model, "").length);
        }
    }

    @Test
    void whatTheTokenizerCannotSayIsNotFound() throws IOException {
        try (Model model = sentencePiece(false, true, false)) {
            assertThrows(KvmergeException.class, () -> Retrieval.cut(model, TEXT, QUESTION, ""));
        }
    }

    /**
     * An answer whose tokens are not those of the answer alone would be scored as if the model had to say something
     * else.
     */
    @Test
    void theRealModelIsAskedTheSameWithEosAndWithout() throws IOException {
        Path withEos = GgufPatch.of(TestModel.path())
                .set("tokenizer.ggml.add_eos_token", GgufPatch.bool(true))
                .write(folder.resolve("eos.gguf"));
        try (Model model = Model.load(TestModel.library(), withEos, Backend.CPU, 0)) {
            assertEquals(
                    TestModel.model().tokenize(TEXT).length + 1, model.tokenize(TEXT).length, "it does add an EOS");
            Retrieval.Parts here = Retrieval.cut(model, TEXT, QUESTION, ANSWER);
            Retrieval.Parts there = Retrieval.cut(TestModel.model(), TEXT, QUESTION, ANSWER);
            assertArrayEquals(there.text(), here.text());
            assertArrayEquals(there.question(), here.question());
            assertArrayEquals(there.answer(), here.answer());
            assertEquals(ANSWER, text(model, here.answer()));
        }
    }
}
