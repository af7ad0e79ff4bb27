package dev.kvmerge.llama;

import java.util.Map;

/**
 * How ggml stores the elements of a tensor.
 *
 * @param block elements a block; a row is whole blocks
 * @param bytes a block
 */
record GgufType(String name, int block, int bytes) {
    /** Those that llama.cpp can compute with as weights, by their number in the file. */
    private static final Map<Integer, GgufType> WEIGHTS = Map.ofEntries(
            of(0, "f32", 1, 4),
            of(1, "f16", 1, 2),
            of(2, "q4_0", 32, 18),
            of(3, "q4_1", 32, 20),
            of(6, "q5_0", 32, 22),
            of(7, "q5_1", 32, 24),
            of(8, "q8_0", 32, 34),
            of(10, "q2_K", 256, 84),
            of(11, "q3_K", 256, 110),
            of(12, "q4_K", 256, 144),
            of(13, "q5_K", 256, 176),
            of(14, "q6_K", 256, 210),
            of(16, "iq2_xxs", 256, 66),
            of(17, "iq2_xs", 256, 74),
            of(18, "iq3_xxs", 256, 98),
            of(19, "iq1_s", 256, 50),
            of(20, "iq4_nl", 32, 18),
            of(21, "iq3_s", 256, 110),
            of(22, "iq2_s", 256, 82),
            of(23, "iq4_xs", 256, 136),
            of(26, "i32", 1, 4),
            of(29, "iq1_m", 256, 56),
            of(30, "bf16", 1, 2),
            of(34, "tq1_0", 256, 54),
            of(35, "tq2_0", 256, 66),
            of(39, "mxfp4", 32, 17),
            of(40, "nvfp4", 64, 36),
            of(41, "q1_0", 128, 18),
            of(42, "q2_0", 64, 18));

    private static Map.Entry<Integer, GgufType> of(int number, String name, int block, int bytes) {
        return Map.entry(number, new GgufType(name, block, bytes));
    }

    /** Null for a number that is none, or no weights'. */
    static GgufType numbered(int number) {
        return WEIGHTS.get(number);
    }

    boolean isFloat() {
        return name.equals("f32") || name.equals("f16") || name.equals("bf16");
    }
}
