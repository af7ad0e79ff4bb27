package dev.kvmerge.llama;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * LongRoPE (Ding et al. 2024; Phi-3 to Phi-4): two sets of factors on the keys' frequencies, for texts within a model's
 * original positions and for longer ones. llama.cpp goes by the size of the context, so that a compressed context and a
 * full one would run two different models. Here every context of a model takes the factors of its trained positions.
 *
 * @param key of the metadata that llama.cpp compares a context's size with
 * @param original its value in the file
 * @param isLong whether the model was trained on more positions than that
 */
record LongRope(String key, int original, boolean isLong) {
    private static final String LONG_FACTORS = "rope_factors_long.weight";
    private static final String ORIGINAL = "rope.scaling.original_context_length";
    private static final String TRAINED = "context_length";
    private static final int OVERRIDE_BYTES = 264; // struct llama_model_kv_override: tag, char key[128], union of 128
    private static final int KEY = 4;
    private static final int VALUE = 136;
    private static final int TAG_INT = 0;

    /** Of a model, or null where it has one set of factors. */
    static LongRope of(GgufHeader header) {
        String key = header.architecture() + "." + ORIGINAL;
        if (!header.tensors().containsKey(LONG_FACTORS) || !header.metadata().containsKey(key)) {
            return null; // without the key, it is the trained positions, and short everywhere
        }
        int original = (int) header.number(ORIGINAL);
        return new LongRope(key, original, header.number(TRAINED) > original);
    }

    /** For llama_model_params: as if the original positions were so few, or so many, that no context's size matters. */
    MemorySegment override(Arena arena) {
        MemorySegment overrides = arena.allocate(2L * OVERRIDE_BYTES, 8); // an empty key ends the list
        overrides.set(ValueLayout.JAVA_INT, 0, TAG_INT);
        overrides.setString(KEY, key);
        overrides.set(ValueLayout.JAVA_LONG, VALUE, isLong ? 1 : Integer.MAX_VALUE);
        return overrides;
    }
}
