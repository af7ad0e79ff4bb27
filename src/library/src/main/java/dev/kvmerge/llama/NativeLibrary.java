package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;

/**
 * Our own native library, libkvmerge: loaded once a process, by {@link #load} or by the first use that needs it. A
 * library is looked at before it is bound to the class loader, which holds it until the JVM ends: one that is refused
 * leaves nothing behind.
 */
public final class NativeLibrary {
    /** System property: a folder that holds libkvmerge, and llama.cpp's libraries too if no other is given for them. */
    public static final String FOLDER_PROPERTY = Natives.FOLDER_PROPERTY;
    /** Environment: the same. */
    public static final String FOLDER_ENVIRONMENT = Natives.FOLDER_ENVIRONMENT;
    /** Environment: the library itself. */
    public static final String FILE_ENVIRONMENT = "KVMERGE_NATIVE_LIB";

    private static final String NAME = System.mapLibraryName("kvmerge");
    private static final long LONGEST_TEXT = 1 << 20; // of kvmerge_abi, in bytes: it has about 5,000
    private static volatile Path loaded;

    private NativeLibrary() {}

    /**
     * Loads libkvmerge.
     *
     * @throws KvmergeException if it is missing, truncated, no libkvmerge or built from another kvmerge.h, or if
     *     another one is loaded already; the next call may bring the right one
     */
    public static synchronized void load(Path library) {
        Path file = real(library);
        if (loaded != null) {
            if (!loaded.equals(file)) {
                throw new KvmergeException("libkvmerge is already loaded from " + loaded + "; a process can hold one");
            }
            return;
        }
        ElfFile.checkWhole(file);
        try (Arena trial = Arena.ofConfined()) {
            check(file, open(file, trial));
            System.load(file.toString());
        } catch (UnsatisfiedLinkError e) {
            throw new KvmergeException("cannot load " + file + ": " + e.getMessage(), e);
        }
        loaded = file;
    }

    /**
     * Makes sure that libkvmerge is there.
     *
     * @throws KvmergeException if it was not loaded, neither -Dkvmerge.native.dir nor KVMERGE_NATIVE_DIR nor
     *     KVMERGE_NATIVE_LIB says where it is, and the jar kvmerge-natives is not there
     */
    public static void require() {
        if (loaded == null && !find()) {
            throw new KvmergeException("libkvmerge is not loaded: call Kvmerge.load, or say where it is with -D"
                    + FOLDER_PROPERTY + "=FOLDER, " + FOLDER_ENVIRONMENT + "=FOLDER or " + FILE_ENVIRONMENT
                    + "=FILE, or add the dependency dev.kvmerge:kvmerge-natives with the classifier "
                    + Natives.platform());
        }
    }

    /** Loads libkvmerge if it is not loaded and is named or in the jar kvmerge-natives; whether it is loaded now. */
    static boolean find() {
        if (loaded == null) {
            String file = System.getenv(FILE_ENVIRONMENT);
            Optional<Path> folder = Natives.named();
            if (folder.isEmpty() && file != null) {
                load(Path.of(file));
            } else {
                folder.or(Natives::unpacked).ifPresent(f -> load(f.resolve(NAME)));
            }
        }
        return loaded != null;
    }

    private static Path real(Path library) {
        Path absolute = library.toAbsolutePath().normalize();
        if (!Files.isRegularFile(absolute)) {
            throw new KvmergeException("no native library at " + absolute
                    + ": run 'make build', or name another folder with -D" + FOLDER_PROPERTY + "=FOLDER");
        }
        try {
            return absolute.toRealPath();
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + absolute + ": " + e.getMessage(), e);
        }
    }

    /** Opens a library until the arena ends. */
    static SymbolLookup open(Path file, Arena arena) {
        try {
            return SymbolLookup.libraryLookup(file, arena);
        } catch (IllegalArgumentException e) { // says no more than that it cannot
            throw new KvmergeException(
                    "cannot load " + file + ": it is no shared library for this machine, needs one that is not there"
                            + " ('ldd " + file + "' says which), or lies on a file system that is mounted noexec",
                    e);
        }
    }

    private static void check(Path file, SymbolLookup lookup) {
        String text = text(lookup, "kvmerge_abi")
                .orElseThrow(() -> new KvmergeException(
                        file + " is not libkvmerge: it has no kvmerge_abi(). Give the one that 'make build' made"));
        Abi.difference(text).ifPresent(line -> {
            throw new KvmergeException(file + " was built from another kvmerge.h than these classes (" + line
                    + "): build both together with 'make build'");
        });
    }

    /** What a function without parameters says; empty where there is no such function. */
    static Optional<String> text(SymbolLookup lookup, String function) {
        return lookup.find(function).map(address -> {
            try {
                MemorySegment text = (MemorySegment) Linker.nativeLinker()
                        .downcallHandle(address, FunctionDescriptor.of(ValueLayout.ADDRESS))
                        .invokeExact();
                return text.reinterpret(LONGEST_TEXT).getString(0);
            } catch (RuntimeException | Error e) {
                throw e;
            } catch (Throwable e) {
                throw new IllegalStateException(e);
            }
        });
    }
}
