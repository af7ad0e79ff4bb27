package dev.kvmerge;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Copies of a GGUF file with other metadata: models of every tokenizer's habits from the one that is here. */
public final class GgufEdit {
    private static final int INT32 = 5;
    private static final int FLOAT32 = 6;
    private static final int BOOL = 7;
    private static final int STRING = 8;
    private static final int ARRAY = 9;
    private static final int[] SIZES = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    private static final int ALIGNMENT = 32;

    private GgufEdit() {}

    /**
     * Writes a copy.
     *
     * @param changes keys and their new values: Boolean, Integer, String, List of String, float[] or int[]
     */
    public static Path copy(Path from, Path to, Map<String, Object> changes) throws IOException {
        try (FileChannel in = FileChannel.open(from);
                OutputStream out = Files.newOutputStream(to)) {
            ByteBuffer head = in.map(FileChannel.MapMode.READ_ONLY, 0, Math.min(in.size(), 1 << 28))
                    .order(ByteOrder.LITTLE_ENDIAN);
            byte[] start = new byte[8];
            head.get(start);
            long tensors = head.getLong();
            long keys = head.getLong();
            Map<String, byte[]> values = new LinkedHashMap<>();
            for (long i = 0; i < keys; i++) {
                String key = string(head);
                int value = head.position();
                skip(head, head.getInt());
                values.put(key, bytes(head, value));
            }
            int infos = head.position();
            for (long i = 0; i < tensors; i++) {
                string(head);
                int dimensions = head.getInt();
                head.position(head.position() + 8 * dimensions + 4 + 8);
            }
            byte[] tensorInfos = bytes(head, infos);
            int data = (head.position() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            changes.forEach((key, changed) -> values.put(key, encoded(changed)));
            ByteArrayOutputStream made = new ByteArrayOutputStream();
            made.writeBytes(start);
            made.writeBytes(little(16).putLong(tensors).putLong(values.size()).array());
            values.forEach((key, kept) -> {
                made.writeBytes(encodedString(key));
                made.writeBytes(kept);
            });
            made.writeBytes(tensorInfos);
            made.writeBytes(new byte[(ALIGNMENT - made.size() % ALIGNMENT) % ALIGNMENT]);
            out.write(made.toByteArray());
            try (FileChannel appended = FileChannel.open(to, StandardOpenOption.APPEND)) {
                for (long at = data; at < in.size(); ) {
                    at += in.transferTo(at, in.size() - at, appended);
                }
            }
        }
        return to;
    }

    private static byte[] bytes(ByteBuffer head, int from) {
        byte[] bytes = new byte[head.position() - from];
        head.get(from, bytes);
        return bytes;
    }

    private static String string(ByteBuffer head) {
        byte[] bytes = new byte[Math.toIntExact(head.getLong())];
        head.get(bytes);
        return new String(bytes, StandardCharsets.UTF_8);
    }

    private static void skip(ByteBuffer head, int type) {
        switch (type) {
            case STRING -> string(head);
            case ARRAY -> {
                int of = head.getInt();
                long n = head.getLong();
                for (long i = 0; i < n; i++) {
                    skip(head, of);
                }
            }
            default -> head.position(head.position() + SIZES[type]);
        }
    }

    private static byte[] encoded(Object value) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        switch (value) {
            case Boolean b ->
                out.writeBytes(little(5).putInt(BOOL).put((byte) (b ? 1 : 0)).array());
            case Integer i -> out.writeBytes(little(8).putInt(4).putInt(i).array());
            case String s -> {
                out.writeBytes(little(4).putInt(STRING).array());
                out.writeBytes(encodedString(s));
            }
            case List<?> strings -> {
                array(out, STRING, strings.size());
                strings.forEach(s -> out.writeBytes(encodedString((String) s)));
            }
            case float[] x -> {
                array(out, FLOAT32, x.length);
                ByteBuffer each = little(4 * x.length);
                each.asFloatBuffer().put(x);
                out.writeBytes(each.array());
            }
            case int[] x -> {
                array(out, INT32, x.length);
                ByteBuffer each = little(4 * x.length);
                each.asIntBuffer().put(x);
                out.writeBytes(each.array());
            }
            default -> throw new IllegalArgumentException("" + value);
        }
        return out.toByteArray();
    }

    private static void array(ByteArrayOutputStream out, int type, int n) {
        out.writeBytes(little(16).putInt(ARRAY).putInt(type).putLong(n).array());
    }

    private static byte[] encodedString(String s) {
        byte[] bytes = s.getBytes(StandardCharsets.UTF_8);
        return little(8 + bytes.length).putLong(bytes.length).put(bytes).array();
    }

    private static ByteBuffer little(int n) {
        return ByteBuffer.allocate(n).order(ByteOrder.LITTLE_ENDIAN);
    }
}
