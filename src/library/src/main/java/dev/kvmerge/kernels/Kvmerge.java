package dev.kvmerge.kernels;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.llama.NativeLibrary;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.nio.file.Path;

/** The native library itself: loading it, its version, its errors. */
public final class Kvmerge {
    private Kvmerge() {}

    /**
     * Loads libkvmerge, once a process, before or after llama.cpp.
     *
     * @throws KvmergeException if it is missing, truncated, no libkvmerge or built from another kvmerge.h, or if
     *     another one is loaded already
     */
    public static void load(Path library) {
        NativeLibrary.load(library);
    }

    public static String version() {
        NativeLibrary.require();
        return Kvmerge_h.kvmerge_version().getString(0);
    }

    /** The instruction set that the kernels use here: avx512, avx2, neon or generic. */
    public static String instructionSet() {
        NativeLibrary.require();
        return Kvmerge_h.kvmerge_isa().getString(0);
    }

    /** Every function's signature and every struct's fields, one a line, as the library was compiled. */
    public static String abi() {
        NativeLibrary.require();
        return Kvmerge_h.kvmerge_abi().getString(0);
    }

    /** A function of the llama.cpp that is loaded. */
    static MemorySegment symbol(String name) {
        return SymbolLookup.loaderLookup()
                .find(name)
                .orElseThrow(() -> new KvmergeException("the loaded llama.cpp has no " + name));
    }

    static void check(int status) {
        if (status != Kvmerge_h.KVMERGE_OK()) {
            throw new KvmergeException(Kvmerge_h.kvmerge_last_error().getString(0));
        }
    }

    /**
     * Makes sure that the CUDA part can be used.
     *
     * @throws KvmergeException if it is not built, or there is no GPU; the message says what to do
     */
    public static void requireCuda() {
        NativeLibrary.require();
        check(Kvmerge_h.kvmerge_device_check(Kvmerge_h.KVMERGE_DEVICE_CUDA()));
    }
}
