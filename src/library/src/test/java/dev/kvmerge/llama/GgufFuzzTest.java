package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.Child;
import dev.kvmerge.GgufPatch;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Headers cut and changed anywhere. Our own reading of them may refuse and never do anything else; what it lets through
 * is loaded and used by another process, which may not die: llama.cpp's own aborts are what the reading is there to
 * prevent. -Dkvmerge.fuzz.cases=N changes so many headers at random, -Dkvmerge.fuzz.seed=N others.
 */
@Tag("native")
class GgufFuzzTest {
    private static final int CASES = Integer.getInteger("kvmerge.fuzz.cases", 150);
    private static final long SEED = Long.getLong("kvmerge.fuzz.seed", 1);

    private static final int KEY_PERCENT = Math.clamp(CASES / 20, 5, 100); // of the keys and values that are tried

    @TempDir
    Path folder;

    private Process process;
    private BufferedReader answers;
    private PrintWriter questions;

    private List<Path> models() {
        List<Path> models = new ArrayList<>();
        models.add(TinyGguf.write(
                folder.resolve("llama.gguf"), new Geometry("llama", 4, 2, 16, 10000, "linear", 16, true)));
        models.add(TinyGguf.write(
                folder.resolve("qwen2.gguf"), new Geometry("qwen2", 4, 2, 16, 10000, "yarn", 16, false)));
        models.add(TinyGguf.write(
                folder.resolve("gemma3.gguf"), new Geometry("gemma3", 2, 1, 32, 10000, "none", 32, false, 64, 2)));
        models.add(GgufPatch.of(models.getFirst()).withVocabulary(300).write(folder.resolve("words.gguf")));
        return models;
    }

    /** What another process says of a model; "died" when that was all it did. */
    private String ask(Path model) throws IOException, InterruptedException {
        if (process == null || !process.isAlive()) {
            ProcessBuilder builder = new ProcessBuilder(Child.command(List.of(), GgufFuzzMain.class))
                    .directory(folder.toFile())
                    .redirectError(folder.resolve("err").toFile());
            builder.environment().put("GGML_NO_BACKTRACE", "1");
            process = builder.start();
            answers = new BufferedReader(new InputStreamReader(process.getInputStream()));
            questions = new PrintWriter(process.getOutputStream(), true);
            assertEquals("ready", answer());
        }
        questions.println(model);
        return answer();
    }

    private String answer() throws IOException, InterruptedException {
        String line = answers.readLine();
        while (line != null && !line.startsWith(GgufFuzzMain.ANSWER)) {
            line = answers.readLine();
        }
        if (line == null) {
            process.waitFor();
            return "died";
        }
        return line.substring(GgufFuzzMain.ANSWER.length());
    }

    @AfterEach
    void end() {
        if (process != null) {
            process.destroy();
        }
    }

    @Test
    void aFileCutAnywhereIsRefused() throws IOException {
        for (Path model : models()) {
            int header = GgufPatch.of(model).headerLength();
            try (FileChannel file = FileChannel.open(model, StandardOpenOption.WRITE)) {
                for (long length = file.size() - 1; length >= 0; length -= length > header + 100 ? 5000 : 1) {
                    file.truncate(length);
                    String message = assertThrows(KvmergeException.class, () -> GgufHeader.read(model))
                            .getMessage();
                    assertTrue(message.contains(model.toString()), message);
                }
            }
        }
    }

    @Test
    void changedHeadersAreRefusedOrUsed() throws IOException, InterruptedException {
        System.out.println("headers changed at random: " + CASES + ", seed " + SEED);
        List<Path> models = models();
        Random random = new Random(SEED);
        Map<String, Integer> counts = new TreeMap<>();
        List<String> deaths = new ArrayList<>();
        for (int i = 0; i < CASES; i++) {
            Path model = models.get(random.nextInt(models.size()));
            byte[] bytes = Files.readAllBytes(model);
            int header = GgufPatch.of(model).headerLength();
            StringBuilder changes = new StringBuilder(model.getFileName().toString());
            for (int n = 1 + random.nextInt(3); n > 0; n--) {
                int at = random.nextInt(header);
                byte was = bytes[at];
                bytes[at] = (byte)
                        (random.nextInt(4) > 0
                                ? was ^ 1 << random.nextInt(8)
                                : new int[] {0, 255, 127, 128}[random.nextInt(4)]);
                changes.append(' ').append(at).append(':').append(bytes[at] & 0xff);
            }
            Path changed = Files.write(folder.resolve("changed.gguf"), bytes);
            String outcome = readOurselves(changed) ? ask(changed) : "refused by kvmerge";
            assertFalse(outcome.startsWith("thrown"), changes + ": " + outcome);
            if (outcome.equals("died")) {
                deaths.add(changes.toString() + " " + lastError());
            }
            counts.merge(outcome.startsWith("refused llama.cpp") ? "refused by llama.cpp" : outcome, 1, Integer::sum);
        }
        System.out.println("headers changed at random: " + counts);
        assertEquals(List.of(), deaths);
    }

    /** Keys that the models do not have, and that llama.cpp reads of others or of all. */
    private static final List<String> OTHERS = List.of(
            "*.attention.causal",
            "*.attention.clamp_kqv",
            "*.attention.key_length_mla",
            "*.attention.key_length_swa",
            "*.attention.layer_norm_epsilon",
            "*.attention.max_alibi_bias",
            "*.attention.scale",
            "*.attention.sliding_window",
            "*.attention.sliding_window_pattern",
            "*.attention.value_length_mla",
            "*.embedding_length_out",
            "*.expert_count",
            "*.expert_group_count",
            "*.expert_group_used_count",
            "*.expert_used_count",
            "*.final_logit_softcapping",
            "*.leading_dense_block_count",
            "*.logit_scale",
            "*.nextn_predict_layers",
            "*.pooling_type",
            "*.rope.dimension_sections",
            "*.rope.freq_base_swa",
            "*.rope.scale_linear",
            "*.rope.scaling.attn_factor",
            "*.rope.scaling.factor",
            "*.rope.scaling.finetuned",
            "*.rope.scaling.original_context_length",
            "*.rope.scaling.type",
            "*.rope.scaling.yarn_beta_fast",
            "*.rope.scaling.yarn_ext_factor",
            "*.use_parallel_residual",
            "general.alignment",
            "general.file_type",
            "general.name",
            "general.sampling.temp",
            "split.count",
            "split.no",
            "split.tensors.count",
            "tokenizer.chat_template",
            "tokenizer.ggml.add_bos_token",
            "tokenizer.ggml.add_space_prefix",
            "tokenizer.ggml.eot_token_id",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.precompiled_charsmap",
            "tokenizer.ggml.remove_extra_whitespaces",
            "tokenizer.ggml.token_type_count");

    private static List<byte[]> values() {
        List<byte[]> values = new ArrayList<>();
        for (long number : new long[] {0, 1, 2, 3, 17, 512, 513, 1 << 16, Integer.MAX_VALUE, 1L << 31, -1}) {
            values.add(GgufPatch.u32(number));
        }
        for (float number : new float[] {0, -1, 1e-38f, 1e38f, Float.NaN, Float.POSITIVE_INFINITY}) {
            values.add(GgufPatch.f32(number));
        }
        values.add(GgufPatch.bool(false));
        values.add(GgufPatch.bool(true));
        values.add(GgufPatch.text(""));
        values.add(GgufPatch.text("yarn"));
        values.add(GgufPatch.texts());
        values.add(GgufPatch.texts("", "a", "a"));
        values.add(GgufPatch.u32s());
        values.add(GgufPatch.u32s(1, 2));
        values.add(GgufPatch.u32s(0, -1));
        values.add(GgufPatch.i32s(-1, 4, 4, 4));
        values.add(GgufPatch.f32s(1, Float.NaN));
        return values;
    }

    @Test
    void everyKeyWithValuesThatItCannotHaveIsRefusedOrUsed() throws IOException, InterruptedException {
        Map<String, Integer> counts = new TreeMap<>();
        List<String> deaths = new ArrayList<>();
        Random random = new Random(SEED);
        List<byte[]> values = values();
        for (Path model : models()) {
            List<String> keys = new ArrayList<>(GgufPatch.of(model).keys());
            String architecture = model.getFileName().toString().replaceAll("words|\\.gguf", "");
            OTHERS.forEach(key -> keys.add(key.replace("*", architecture.isEmpty() ? "llama" : architecture)));
            for (String key : keys) {
                for (int v = -1; v < values.size(); v++) {
                    if (random.nextInt(100) >= KEY_PERCENT) {
                        continue;
                    }
                    GgufPatch patch = GgufPatch.of(model);
                    Path changed = (v < 0 ? patch.remove(key) : patch.set(key, values.get(v)))
                            .write(folder.resolve("changed.gguf"));
                    String outcome = readOurselves(changed) ? ask(changed) : "refused by kvmerge";
                    String what = model.getFileName() + " " + key + " value " + v;
                    assertFalse(outcome.startsWith("thrown"), what + ": " + outcome);
                    if (outcome.equals("died")) {
                        deaths.add(what + lastError());
                    }
                    counts.merge(outcome.replaceFirst(" the model.*", ""), 1, Integer::sum);
                }
            }
        }
        System.out.println("values: " + counts);
        assertEquals("", String.join("\n", deaths));
    }

    private String lastError() throws IOException {
        return Files.readString(folder.resolve("err"))
                .lines()
                .filter(line -> line.contains("ASSERT")
                        || line.contains("terminate")
                        || line.contains("what()")
                        || line.contains("SIG")
                        || line.contains("error"))
                .reduce("", (a, b) -> a + " | " + b);
    }

    private static boolean readOurselves(Path model) {
        try {
            GgufHeader.read(model);
            return true;
        } catch (KvmergeException e) {
            return false;
        }
    }
}
