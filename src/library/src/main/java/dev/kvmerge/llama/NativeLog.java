package dev.kvmerge.llama;

import dev.kvmerge.bindings.Kvmerge_h;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Keeps llama.cpp's warnings and errors, so that a failure can be explained. Lives as long as the process. */
final class NativeLog {
    private static final int MOST = 4096;
    private final MemorySegment handle;

    private NativeLog(MemorySegment handle) {
        this.handle = handle;
    }

    /** Makes a log; with echo it also prints every line to standard error. */
    static NativeLog create(boolean echo) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
            check(Kvmerge_h.kvmerge_log_create(echo, out));
            return new NativeLog(out.get(ValueLayout.ADDRESS, 0));
        }
    }

    /** The C function to give to llama_log_set. */
    MemorySegment callback() {
        return Kvmerge_h.kvmerge_log_callback$address();
    }

    MemorySegment userData() {
        return handle;
    }

    /** What was kept since the last take. */
    String take() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = arena.allocate(MOST);
            check(Kvmerge_h.kvmerge_log_take(handle, text, MOST));
            return text.getString(0);
        }
    }

    private static void check(int status) {
        if (status != Kvmerge_h.KVMERGE_OK()) {
            throw new IllegalStateException(Kvmerge_h.kvmerge_last_error().getString(0));
        }
    }
}
