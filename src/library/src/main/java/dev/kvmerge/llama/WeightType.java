package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Llama_h;
import dev.kvmerge.bindings.llama_model_quantize_params;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Locale;

/** Types that llama.cpp quantises weights to; the names are llama-quantize's. */
public enum WeightType {
    Q8_0(Llama_h.LLAMA_FTYPE_MOSTLY_Q8_0()),
    Q5_0(Llama_h.LLAMA_FTYPE_MOSTLY_Q5_0()),
    Q4_0(Llama_h.LLAMA_FTYPE_MOSTLY_Q4_0()),
    Q6_K(Llama_h.LLAMA_FTYPE_MOSTLY_Q6_K()),
    Q4_K_M(Llama_h.LLAMA_FTYPE_MOSTLY_Q4_K_M()),
    Q3_K_M(Llama_h.LLAMA_FTYPE_MOSTLY_Q3_K_M()),
    Q2_K(Llama_h.LLAMA_FTYPE_MOSTLY_Q2_K());

    private final int ftype;

    WeightType(int ftype) {
        this.ftype = ftype;
    }

    /**
     * The type of a name, in any case.
     *
     * @throws KvmergeException.Usage if there is none, naming those that there are
     */
    public static WeightType named(String name) {
        return Arrays.stream(values())
                .filter(t -> t.name().equalsIgnoreCase(name))
                .findFirst()
                .orElseThrow(() -> new KvmergeException.Usage("no weights of type '" + name + "': there are "
                        + Arrays.toString(values()).toLowerCase(Locale.ROOT)));
    }

    /**
     * Writes a model with its weights in this type. Where a row of weights does not fit the type's blocks (K types:
     * 256), llama.cpp takes another of about its size. Weights that are quantised already are quantised again.
     *
     * @throws KvmergeException if llama.cpp cannot; nothing is left of the new file then
     */
    public void quantise(LlamaLibrary library, Path model, Path into, int threads) {
        if (threads <= 0) {
            throw new KvmergeException.Usage("threads (-t) must be positive, not " + threads);
        }
        GgufHeader.read(model); // llama.cpp ends the process over a wrong one
        library.takeLog();
        try (Arena arena = Arena.ofConfined()) {
            var params = Llama_h.llama_model_quantize_default_params(arena);
            llama_model_quantize_params.ftype(params, ftype);
            llama_model_quantize_params.nthread(params, threads);
            llama_model_quantize_params.allow_requantize(params, true);
            int status = Llama_h.llama_model_quantize(
                    arena.allocateFrom(model.toString()), arena.allocateFrom(into.toString()), params);
            if (status != 0) {
                try {
                    Files.deleteIfExists(into);
                } catch (IOException e) {
                    throw new KvmergeException("cannot delete " + into + ": " + e.getMessage(), e);
                }
                throw new KvmergeException(
                        "llama.cpp cannot quantise " + model + " to " + name() + ": " + library.takeLog());
            }
        }
    }
}
