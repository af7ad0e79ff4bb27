package dev.kvmerge.kernels;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Kvmerge_h;
import java.nio.file.Files;
import java.nio.file.Path;

/** The native library itself: loading it, its version, its errors. */
public final class Kvmerge {
    private static Path loaded;

    private Kvmerge() {}

    /**
     * Loads libkvmerge, once a process.
     *
     * @throws KvmergeException if it is missing or cannot be loaded
     */
    public static synchronized void load(Path library) {
        Path absolute = library.toAbsolutePath().normalize();
        if (loaded != null) {
            return;
        }
        if (!Files.isRegularFile(absolute)) {
            throw new KvmergeException("no native library at " + absolute + ": run 'make build'");
        }
        try {
            System.load(absolute.toString());
        } catch (UnsatisfiedLinkError e) {
            throw new KvmergeException("cannot load " + absolute + ": " + e.getMessage(), e);
        }
        loaded = absolute;
    }

    public static String version() {
        return Kvmerge_h.kvmerge_version().getString(0);
    }

    /** The instruction set that the kernels use here: avx512, avx2, neon or generic. */
    public static String instructionSet() {
        return Kvmerge_h.kvmerge_isa().getString(0);
    }

    /** Every function's signature and every struct's fields, one a line, as the library was compiled. */
    public static String abi() {
        return Kvmerge_h.kvmerge_abi().getString(0);
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
        check(Kvmerge_h.kvmerge_device_check(Kvmerge_h.KVMERGE_DEVICE_CUDA()));
    }
}
