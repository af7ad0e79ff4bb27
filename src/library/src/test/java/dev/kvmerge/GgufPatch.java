package dev.kvmerge;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A GGUF file with other metadata: values are set as raw bytes, so that they may be wrong. */
public final class GgufPatch {
    private static final int STRING = 8;
    private static final int ARRAY = 9;
    private static final int[] BYTES = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; // by type

    private final byte[] file;
    private final Map<String, byte[]> metadata = new LinkedHashMap<>(); // type and value, by key
    private final int infosStart;
    private final int dataStart;

    private GgufPatch(byte[] file) {
        this.file = file;
        ByteBuffer in = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN);
        long tensors = in.getLong(8);
        long keys = in.getLong(16);
        in.position(24);
        for (long i = 0; i < keys; i++) {
            String key = string(in);
            int start = in.position();
            skipValue(in, in.getInt());
            metadata.put(key, Arrays.copyOfRange(file, start, in.position()));
        }
        infosStart = in.position();
        for (long i = 0; i < tensors; i++) {
            string(in);
            in.position(in.getInt() * 8 + in.position() + 12);
        }
        dataStart = in.position();
    }

    /** Of a file whose alignment is 32. */
    public static GgufPatch of(Path file) {
        try {
            return new GgufPatch(Files.readAllBytes(file));
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    private static String string(ByteBuffer in) {
        byte[] bytes = new byte[(int) in.getLong()];
        in.get(bytes);
        return new String(bytes, StandardCharsets.UTF_8);
    }

    private static void skipValue(ByteBuffer in, int type) {
        if (type == STRING) {
            string(in);
        } else if (type == ARRAY) {
            int element = in.getInt();
            for (long n = in.getLong(); n > 0; n--) {
                skipValue(in, element);
            }
        } else {
            in.position(in.position() + BYTES[type]);
        }
    }

    /** Bytes before the tensors' data. */
    public int headerLength() {
        return dataStart;
    }

    public List<String> keys() {
        return List.copyOf(metadata.keySet());
    }

    public GgufPatch set(String key, byte[] typeAndValue) {
        metadata.put(key, typeAndValue);
        return this;
    }

    public GgufPatch remove(String key) {
        metadata.remove(key);
        return this;
    }

    public Path write(Path to) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.write(file, 0, 16);
        out.writeBytes(little(8).putLong(metadata.size()).array());
        metadata.forEach((key, value) -> {
            writeString(out, key);
            out.writeBytes(value);
        });
        out.write(file, infosStart, dataStart - infosStart);
        out.writeBytes(new byte[-out.size() & 31]);
        int data = dataStart + 31 & -32;
        try (OutputStream whole = Files.newOutputStream(to)) {
            out.writeTo(whole);
            whole.write(file, data, file.length - data);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        return to;
    }

    private static ByteBuffer little(int n) {
        return ByteBuffer.allocate(n).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static void writeString(ByteArrayOutputStream out, String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        out.writeBytes(little(8).putLong(bytes.length).array());
        out.writeBytes(bytes);
    }

    public static byte[] u32(long value) {
        return little(8).putInt(4).putInt((int) value).array();
    }

    public static byte[] f32(float value) {
        return little(8).putInt(6).putFloat(value).array();
    }

    public static byte[] bool(boolean value) {
        return little(5).putInt(7).put((byte) (value ? 1 : 0)).array();
    }

    public static byte[] text(String value) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(little(4).putInt(STRING).array());
        writeString(out, value);
        return out.toByteArray();
    }

    public static byte[] texts(String... values) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(
                little(16).putInt(ARRAY).putInt(STRING).putLong(values.length).array());
        for (String value : values) {
            writeString(out, value);
        }
        return out.toByteArray();
    }

    public static byte[] u32s(int... values) {
        return numbers(4, values.length, buffer -> Arrays.stream(values).forEach(buffer::putInt));
    }

    public static byte[] i32s(int... values) {
        return numbers(5, values.length, buffer -> Arrays.stream(values).forEach(buffer::putInt));
    }

    public static byte[] f32s(float... values) {
        return numbers(6, values.length, buffer -> {
            for (float value : values) {
                buffer.putFloat(value);
            }
        });
    }

    private static byte[] numbers(int type, int n, java.util.function.Consumer<ByteBuffer> fill) {
        ByteBuffer buffer = little(16 + 4 * n).putInt(ARRAY).putInt(type).putLong(n);
        fill.accept(buffer);
        return buffer.array();
    }

    /**
     * Gives the model words (a SentencePiece vocabulary): letters, the space, and one word of so many bytes. None for
     * most bytes.
     */
    public GgufPatch withVocabulary(int longest) {
        String[] words = new String[TinyGguf.VOCABULARY];
        float[] scores = new float[words.length];
        int[] types = new int[words.length];
        for (int i = 0; i < words.length; i++) {
            words[i] = i == 0 ? "<unk>" : i == 1 ? "<s>" : i == 2 ? "</s>" : Character.toString(' ' + i);
            types[i] = i == 0 ? 2 : i < 3 ? 3 : 1;
            scores[i] = -i;
        }
        words[words.length - 2] = "\u2581";
        words[words.length - 1] = "x".repeat(longest);
        return set("tokenizer.ggml.model", text("llama"))
                .set("tokenizer.ggml.tokens", texts(words))
                .set("tokenizer.ggml.scores", f32s(scores))
                .set("tokenizer.ggml.token_type", i32s(types))
                .set("tokenizer.ggml.bos_token_id", u32(1))
                .set("tokenizer.ggml.eos_token_id", u32(2))
                .set("tokenizer.ggml.unknown_token_id", u32(0));
    }
}
