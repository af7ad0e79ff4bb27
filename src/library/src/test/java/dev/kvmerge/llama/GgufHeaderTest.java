package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.GgufPatch;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.TinyGguf.Geometry;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** What llama.cpp would end the process over is refused by the name of the key or tensor. */
@Tag("native")
class GgufHeaderTest {
    @TempDir
    Path folder;

    private Path tiny;

    @BeforeEach
    void write() {
        tiny = TinyGguf.write(folder.resolve("tiny.gguf"), new Geometry("llama", 4, 2, 16, 10000, "none", 16, false));
    }

    private String refused(Path model) {
        String message = assertThrows(KvmergeException.class, () -> GgufHeader.read(model))
                .getMessage();
        assertTrue(message.startsWith("the model " + model), message);
        return message;
    }

    private Path patched(String key, byte[] value) {
        return GgufPatch.of(tiny).set(key, value).write(folder.resolve("patched.gguf"));
    }

    static Stream<Arguments> wrongValues() {
        return Stream.of(
                Arguments.of("llama.block_count", GgufPatch.u32(0)),
                Arguments.of("llama.block_count", GgufPatch.u32(Integer.MAX_VALUE)),
                Arguments.of("llama.block_count", GgufPatch.u32s(2)),
                Arguments.of("llama.attention.layer_norm_rms_epsilon", GgufPatch.f32(Float.NaN)),
                Arguments.of("llama.attention.layer_norm_rms_epsilon", GgufPatch.f32(-1)),
                Arguments.of("llama.attention.head_count", GgufPatch.u32(0)),
                Arguments.of("llama.attention.head_count", GgufPatch.u32s(4)),
                Arguments.of("llama.attention.head_count_kv", GgufPatch.u32(3)),
                Arguments.of("llama.attention.head_count_kv", GgufPatch.u32(8)),
                Arguments.of("llama.attention.key_length", GgufPatch.u32(0)),
                Arguments.of("llama.embedding_length", GgufPatch.u32(0)),
                Arguments.of("llama.context_length", GgufPatch.u32(0)),
                Arguments.of("llama.vocab_size", GgufPatch.u32(-1)),
                Arguments.of("llama.rope.dimension_count", GgufPatch.u32(0)),
                Arguments.of("llama.rope.dimension_count", GgufPatch.u32(15)),
                Arguments.of("llama.rope.dimension_count", GgufPatch.u32(32)),
                Arguments.of("llama.rope.freq_base", GgufPatch.f32(0)),
                Arguments.of("llama.rope.freq_base", GgufPatch.f32(Float.NaN)),
                Arguments.of("llama.rope.scaling.type", GgufPatch.text("spiral")),
                Arguments.of("llama.rope.scaling.factor", GgufPatch.f32(Float.POSITIVE_INFINITY)),
                Arguments.of("llama.rope.scaling.factor", GgufPatch.f32(-2)),
                Arguments.of("llama.expert_count", GgufPatch.u32(4)),
                Arguments.of("llama.expert_group_count", GgufPatch.u32(2)),
                Arguments.of("llama.nextn_predict_layers", GgufPatch.u32(2)),
                Arguments.of("general.alignment", GgufPatch.u32(0)),
                Arguments.of("general.alignment", GgufPatch.u32(24)),
                Arguments.of("general.architecture", GgufPatch.u32(1)),
                Arguments.of("tokenizer.ggml.model", GgufPatch.u32(1)));
    }

    @ParameterizedTest
    @MethodSource("wrongValues")
    void aWrongValueIsRefusedByItsKey(String key, byte[] value) {
        String message = refused(patched(key, value));
        String name = key.startsWith("llama.expert") ? "llama.expert" : key;
        assertTrue(message.contains(name), message);
    }

    /** What llama.cpp takes is taken, unusual as it is. */
    static Stream<Arguments> rightValues() {
        return Stream.of(
                Arguments.of("llama.rope.scaling.factor", GgufPatch.f32(0)), // no scaling
                Arguments.of("llama.expert_used_count", GgufPatch.u32s(0, 0)), // of each layer
                Arguments.of("llama.attention.head_count", GgufPatch.u32s(4, 4)),
                Arguments.of("llama.feed_forward_length", GgufPatch.u32s(96, 96)),
                Arguments.of("llama.attention.sliding_window", GgufPatch.u32(0)),
                Arguments.of("llama.activation_sparsity_scale", GgufPatch.f32(Float.NEGATIVE_INFINITY)),
                Arguments.of("tokenizer.huggingface.json", GgufPatch.text("{".repeat(20 << 20))));
    }

    @ParameterizedTest
    @MethodSource("rightValues")
    void aRightValueIsTaken(String key, byte[] value) {
        assertEquals(2, GgufHeader.read(patched(key, value)).layers());
        try (Model model = Model.load(TestModel.library(), folder.resolve("patched.gguf"), Backend.CPU, 0)) {
            assertEquals(2, model.shape().layers());
        }
    }

    /** Each layer may use another number of its experts; one expert of a Hunyuan model is none. */
    @Test
    void expertsAreCountedAsLlamaCppCountsThem() {
        GgufPatch experts = GgufPatch.of(tiny).set("llama.expert_count", GgufPatch.u32(4));
        Path each = experts.set("llama.expert_used_count", GgufPatch.u32s(0, 2)).write(folder.resolve("each.gguf"));
        assertEquals(2, GgufHeader.read(each).layers());
        Path many = experts.set("llama.expert_used_count", GgufPatch.u32s(1, 5)).write(folder.resolve("many.gguf"));
        assertTrue(refused(many).contains("llama.expert_used_count is 5 of 4 experts"));
        Path none = experts.set("llama.expert_used_count", GgufPatch.u32s(0, 0)).write(folder.resolve("none.gguf"));
        assertTrue(refused(none).contains("llama.expert_used_count is 0 of 4 experts"));
    }

    @Test
    void whatIsMissingIsNamed() {
        for (String key : new String[] {"general.architecture", "llama.block_count", "tokenizer.ggml.model"}) {
            String message = refused(GgufPatch.of(tiny).remove(key).write(folder.resolve("patched.gguf")));
            assertTrue(message.contains("its key " + key + " is missing"), message);
        }
    }

    @Test
    void tokensAreCheckedAgainstEachOther() {
        Path words = GgufPatch.of(tiny).withVocabulary(8).write(folder.resolve("words.gguf"));
        assertTrue(GgufHeader.read(words).hasVocabulary());
        String[] twins = new String[TinyGguf.VOCABULARY];
        Arrays.setAll(twins, i -> i == 70 ? "word3" : "word" + i);
        Path two = GgufPatch.of(words)
                .set("tokenizer.ggml.tokens", GgufPatch.texts(twins))
                .write(folder.resolve("two.gguf"));
        assertTrue(refused(two).contains("two of its tokenizer.ggml.tokens have the same text"));
        Path few = GgufPatch.of(words)
                .set("tokenizer.ggml.scores", GgufPatch.f32s(1, 2))
                .write(folder.resolve("few.gguf"));
        assertTrue(refused(few).contains("tokenizer.ggml.scores has 2 elements for 96 tokens"));
        int[] types = new int[TinyGguf.VOCABULARY];
        types[9] = 6;
        Path bytes = GgufPatch.of(words)
                .set("tokenizer.ggml.token_type", GgufPatch.i32s(types))
                .write(folder.resolve("bytes.gguf"));
        assertTrue(refused(bytes).contains("its token 9 is a byte by its type"));
    }

    @Test
    void modelsWithoutACausalCacheAreRefusedByTheirArchitecture() {
        assertTrue(
                refused(patched("general.architecture", GgufPatch.text("bert"))).contains("architecture bert"));
        assertTrue(refused(patched("llama.attention.causal", GgufPatch.bool(false)))
                .contains("no KV cache"));
    }

    @Test
    void filesThatAreNoneAreToldApart() throws IOException {
        assertTrue(assertThrows(KvmergeException.class, () -> GgufHeader.read(folder.resolve("none")))
                .getMessage()
                .startsWith("no model at"));
        assertTrue(refused(Files.write(folder.resolve("a"), new byte[0])).contains("is empty"));
        assertTrue(refused(Files.writeString(folder.resolve("a"), "GGU")).contains("is not a GGUF file"));
        assertTrue(refused(Files.writeString(folder.resolve("a"), "a text")).contains("is not a GGUF file"));
        byte[] bytes = Files.readAllBytes(tiny);
        bytes[4] = 1;
        assertTrue(refused(Files.write(folder.resolve("a"), bytes)).contains("GGUF version 1"));
        bytes[4] = 0;
        bytes[7] = 3;
        assertTrue(refused(Files.write(folder.resolve("a"), bytes)).contains("big-endian"));
    }

    /** A count that no file can hold is refused without memory for it. */
    @Test
    void countsBeyondTheFileAreRefused() throws IOException {
        for (int at : new int[] {8, 16}) {
            byte[] bytes = Files.readAllBytes(tiny);
            bytes[at + 5] = 1;
            assertTrue(refused(Files.write(folder.resolve("a"), bytes)).contains("claims to have"));
        }
        byte[] array = GgufPatch.u32s(1, 2);
        array[14] = 1; // of its count
        assertTrue(refused(patched("general.tags", array)).contains("the value of key general.tags, an array of"));
        byte[] text = GgufPatch.text("x");
        text[10] = 1;
        assertTrue(refused(patched("general.name", text)).contains("is truncated"));
    }

    @Test
    void layersOfDifferentShapesAreRefusedByName() {
        Geometry wide = new Geometry("llama", 4, 4, 16, 10000, "none", 16, false);
        Path model = GgufPatch.of(TinyGguf.write(folder.resolve("wide.gguf"), wide))
                .set("general.architecture", GgufPatch.text("llama"))
                .set("llama.attention.head_count_kv", GgufPatch.u32s(4, 4))
                .write(folder.resolve("alike.gguf"));
        try (Model alike = Model.load(TestModel.library(), model, Backend.CPU, 0)) {
            assertEquals(4, alike.shape().kvHeads());
        }
        GgufHeader header = GgufHeader.read(model);
        assertEquals(4, header.kvHeads(1));
        assertTrue(refused(GgufPatch.of(model)
                        .set("llama.attention.head_count_kv", GgufPatch.u32s(4, 2))
                        .write(folder.resolve("other.gguf")))
                .contains("blk.1.attn_k.weight"));
    }

    @Test
    void textsAreWholeWhateverTheirLength() {
        String long0 = "n".repeat(5000);
        Path model = GgufPatch.of(tiny)
                .withVocabulary(1000)
                .set("general.name", GgufPatch.text(long0))
                .write(folder.resolve("words.gguf"));
        try (Model words = Model.load(TestModel.library(), model, Backend.CPU, 0)) {
            int last = TinyGguf.VOCABULARY - 1;
            assertArrayEquals("x".repeat(1000).getBytes(StandardCharsets.US_ASCII), words.piece(last));
            assertArrayEquals("C".getBytes(StandardCharsets.US_ASCII), words.piece('C' - ' '));
            assertEquals("", new String(words.piece(2), StandardCharsets.US_ASCII));
            assertEquals("</s>", new String(words.piece(2, true), StandardCharsets.US_ASCII));
            assertEquals(long0, words.metadata("general.name"));
            assertEquals("llama", words.metadata("general.architecture"));
            assertEquals(null, words.metadata("general.no"));
            assertEquals(1, words.bos());
            assertEquals(2, words.eos());
            assertEquals(-1, words.eot());
            assertTrue(words.isSpecial(0), "<unk>");
            assertTrue(words.isSpecial(2));
            assertFalse(words.isSpecial(3));
            assertFalse(words.takesSpaceBefore(2));
            assertFalse(words.takesSpaceBehind(2));
            assertTrue(words.endsGeneration(2));
            assertFalse(words.endsGeneration(3));
            assertArrayEquals(new int[] {1, last - 1, 'B' - ' ', 'C' - ' '}, words.tokenize("BC"));
            assertArrayEquals(new int[] {last - 1, 'B' - ' '}, words.tokenize("B", false, false));
            assertArrayEquals(
                    new int[] {2, last - 1, 'B' - ' '}, words.tokenize("</s>B", false, true), "the token itself");
            assertArrayEquals(
                    new int[] {last - 1, '<' - ' ', '/' - ' ', 's' - ' ', '>' - ' '},
                    words.tokenize("</s>", false, false),
                    "the text");
            String message = assertThrows(KvmergeException.class, () -> words.tokenize("B\u4e66"))
                    .getMessage();
            assertTrue(message.contains("no token for the character '\u4e66'"), message);
            assertThrows(IllegalArgumentException.class, () -> words.piece(TinyGguf.VOCABULARY));
            assertThrows(IllegalArgumentException.class, () -> words.endsGeneration(-1));
        }
    }

    @Test
    void aModelWithoutAVocabularySaysSo() {
        try (Model model = Model.load(TestModel.library(), tiny, Backend.CPU, 0)) {
            assertEquals(TinyGguf.VOCABULARY, model.vocabularySize());
            for (Runnable call : new Runnable[] {
                () -> model.tokenize("a"),
                () -> model.piece(1),
                model::bos,
                model::eos,
                model::eot,
                () -> model.isSpecial(1),
                model::addsBos,
                () -> model.endsGeneration(1)
            }) {
                String message = assertThrows(KvmergeException.class, call::run).getMessage();
                assertTrue(message.contains("has no vocabulary"), message);
            }
        }
    }

    @Test
    void realModelsAreTaken() throws IOException {
        try (Stream<Path> files = Files.list(TestModel.path().getParent())) {
            for (Path file : files.filter(f -> f.toString().endsWith(".gguf")).toList()) {
                assertTrue(GgufHeader.read(file).hasVocabulary(), file.toString());
            }
        }
    }
}
