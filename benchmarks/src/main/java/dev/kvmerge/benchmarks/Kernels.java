package dev.kvmerge.benchmarks;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.file.Path;

/** The kernels of native/src/kernels/kernels.hpp by name, through libkvmerge_bench. */
final class Kernels {
    private static final MethodHandle CALL;
    private static final MethodHandle LIST;

    static {
        SymbolLookup symbols = SymbolLookup.libraryLookup(library("kvmerge_bench"), Arena.global());
        CALL = Linker.nativeLinker()
                .downcallHandle(
                        symbols.find("kvmerge_bench_kernel").orElseThrow(),
                        FunctionDescriptor.of(
                                ValueLayout.JAVA_INT, ValueLayout.ADDRESS, ValueLayout.ADDRESS, ValueLayout.JAVA_LONG));
        LIST = Linker.nativeLinker()
                .downcallHandle(
                        symbols.find("kvmerge_bench_list").orElseThrow(), FunctionDescriptor.of(ValueLayout.ADDRESS));
    }

    private Kernels() {}

    /** Where 'make build' puts a native library. */
    static Path library(String name) {
        return Path.of(System.getProperty("kvmerge.home", "."), "build/native", System.mapLibraryName(name));
    }

    /** All names. */
    static String[] names() {
        try {
            MemorySegment text = (MemorySegment) LIST.invokeExact();
            return text.reinterpret(4096).getString(0).split("\n");
        } catch (Throwable e) {
            throw new IllegalStateException(e);
        }
    }

    /** Runs a kernel; the descriptor's layout must be the header's. */
    static void run(MemorySegment name, MemorySegment args, long size) {
        int status;
        try {
            status = (int) CALL.invokeExact(name, args, size);
        } catch (Throwable e) {
            throw new IllegalStateException(e);
        }
        if (status != 0) {
            throw new IllegalStateException(
                    name.getString(0) + ": a descriptor of " + size + " bytes, the kernel's has " + status);
        }
    }

    /** A C struct, field after field with C's alignment. */
    static final class Struct {
        private final MemorySegment memory;
        private long size;
        private long alignment = 1;

        Struct(Arena arena) {
            memory = arena.allocate(512, 8);
        }

        private long place(long bytes) {
            size = (size + bytes - 1) / bytes * bytes;
            alignment = Math.max(alignment, bytes);
            long at = size;
            size += bytes;
            return at;
        }

        Struct pointer(MemorySegment p) {
            memory.set(ValueLayout.ADDRESS, place(8), p);
            return this;
        }

        Struct size(long x) {
            memory.set(ValueLayout.JAVA_LONG, place(8), x);
            return this;
        }

        Struct integer(int x) {
            memory.set(ValueLayout.JAVA_INT, place(4), x);
            return this;
        }

        Struct single(float x) {
            memory.set(ValueLayout.JAVA_FLOAT, place(4), x);
            return this;
        }

        Struct real(double x) {
            memory.set(ValueLayout.JAVA_DOUBLE, place(8), x);
            return this;
        }

        /** A CellView. */
        Struct cells(MemorySegment data, int type, boolean transposed, int dim, int n, long cellBytes) {
            return pointer(data)
                    .integer(type)
                    .integer(transposed ? 1 : 0)
                    .integer(dim)
                    .integer(n)
                    .size(cellBytes);
        }

        MemorySegment memory() {
            return memory;
        }

        long bytes() {
            return (size + alignment - 1) / alignment * alignment;
        }
    }
}
