package dev.kvmerge;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** A model of random weights that reads text: a SentencePiece vocabulary of single letters and a few words. */
public final class SmallVocabulary {
    private SmallVocabulary() {}

    /**
     * Writes the model.
     *
     * @param spaceInFront whether a space is put before a text, as Llama 2 and Mistral have it
     * @param bos whether a text begins with BOS, token 1
     * @param eos whether a text ends with EOS, token 2
     */
    public static Path write(Path file, boolean spaceInFront, boolean bos, boolean eos) throws IOException {
        List<String> words = new ArrayList<>(List.of("<unk>", "<s>", "</s>", "\u2581", "\n", "."));
        for (char c = 'a'; c <= 'z'; c++) {
            words.add(String.valueOf(c));
        }
        for (char c = '0'; c <= '9'; c++) {
            words.add(String.valueOf(c));
        }
        words.addAll(
                List.of("th", "the", "is", "\u2581the", "\u2581is", "ol", "old", "\u2581old", "\u25814", "\u25811"));
        while (words.size() < TinyGguf.VOCABULARY) {
            words.add("unused" + words.size());
        }
        float[] scores = new float[words.size()];
        int[] types = new int[words.size()];
        for (int i = 0; i < scores.length; i++) {
            scores[i] = -i;
            types[i] = i == 0 ? 2 : i < 3 ? 3 : 1; // unknown, control, normal
        }
        Path without = file.resolveSibling(file.getFileName() + ".none");
        TinyGguf.write(without, new TinyGguf.Geometry("llama", 4, 2, 16, 10000, "none", 16, false));
        GgufPatch.of(without)
                .set("tokenizer.ggml.model", GgufPatch.text("llama"))
                .set("tokenizer.ggml.tokens", GgufPatch.texts(words.toArray(new String[0])))
                .set("tokenizer.ggml.scores", GgufPatch.f32s(scores))
                .set("tokenizer.ggml.token_type", GgufPatch.i32s(types))
                .set("tokenizer.ggml.bos_token_id", GgufPatch.u32(1))
                .set("tokenizer.ggml.eos_token_id", GgufPatch.u32(2))
                .set("tokenizer.ggml.add_bos_token", GgufPatch.bool(bos))
                .set("tokenizer.ggml.add_eos_token", GgufPatch.bool(eos))
                .set("tokenizer.ggml.add_space_prefix", GgufPatch.bool(spaceInFront))
                .write(file);
        Files.delete(without);
        return file;
    }
}
