package dev.kvmerge.llama;

import dev.kvmerge.bindings.Llama_h;
import dev.kvmerge.bindings.ggml_threadpool_params;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;

/**
 * The threads that a context computes on. Without one, ggml starts and ends threads for every piece of a graph, and an
 * eval callback cuts the graph of a token into dozens of pieces.
 */
final class ThreadPool implements AutoCloseable {
    private final MemorySegment pool;
    private final MethodHandle free;

    private ThreadPool(MemorySegment pool, MethodHandle free) {
        this.pool = pool;
        this.free = free;
    }

    /**
     * Gives a context a pool; null where it needs none, or its llama.cpp has none.
     *
     * @param watched whether an eval callback works between the pieces of a graph: then waiting threads sleep, else
     *     they watch for work as llama.cpp's own tools have it
     */
    static ThreadPool attach(MemorySegment context, int threads, boolean watched) {
        if (threads == 1) {
            return null;
        }
        MethodHandle make = LlamaLibrary.backendFunction(
                "CPU", "ggml_threadpool_new", FunctionDescriptor.of(ValueLayout.ADDRESS, ValueLayout.ADDRESS));
        MethodHandle free = LlamaLibrary.backendFunction(
                "CPU", "ggml_threadpool_free", FunctionDescriptor.ofVoid(ValueLayout.ADDRESS));
        if (make == null || free == null) {
            return null;
        }
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment params = Llama_h.ggml_threadpool_params_default(arena, threads);
            if (watched) {
                ggml_threadpool_params.poll(params, 0);
            }
            MemorySegment pool = (MemorySegment) make.invokeExact(params);
            if (pool.equals(MemorySegment.NULL)) {
                return null;
            }
            Llama_h.llama_attach_threadpool(context, pool, pool);
            return new ThreadPool(pool, free);
        } catch (RuntimeException | Error e) {
            throw e;
        } catch (Throwable e) {
            throw new IllegalStateException(e);
        }
    }

    /** Ends the threads; after the context. */
    @Override
    public void close() {
        try {
            free.invokeExact(pool);
        } catch (RuntimeException | Error e) {
            throw e;
        } catch (Throwable e) {
            throw new IllegalStateException(e);
        }
    }
}
