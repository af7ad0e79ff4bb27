package dev.kvmerge.llama;

import dev.kvmerge.bindings.ggml_tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.LongPredicate;

/**
 * Finds the layers that attend to everything in a model with sliding windows. llama.cpp's API says how long the windows
 * are, not which layers have them; but in a context larger than a window, those layers have fewer cells. So a token is
 * decoded and the caches that it is written to are looked at.
 */
final class FullLayers {
    private static final FunctionDescriptor EVAL_CALLBACK = FunctionDescriptor.of(
            ValueLayout.JAVA_BOOLEAN, ValueLayout.ADDRESS, ValueLayout.JAVA_BOOLEAN, ValueLayout.ADDRESS);

    private final Map<Integer, Long> cells = new TreeMap<>(); // by layer

    private RuntimeException failure;

    private FullLayers() {}

    /**
     * The layers' numbers, ascending.
     *
     * @param full attend to everything; empty when all have windows
     * @param windowed have a window, and cells of their own for it
     */
    record Found(List<Integer> full, List<Integer> windowed) {}

    static Found of(Model model, int window) {
        FullLayers found = new FullLayers();
        int block = 32;
        int wanted = window + block + 2 * LlamaCache.PADDING; // more than a layer with windows gets
        try (Arena arena = Arena.ofShared()) {
            var node = MethodHandles.lookup()
                    .bind(
                            found,
                            "node",
                            MethodType.methodType(
                                    boolean.class, MemorySegment.class, boolean.class, MemorySegment.class));
            MemorySegment callback = Linker.nativeLinker().upcallStub(node, EVAL_CALLBACK, arena);
            ContextOptions options =
                    ContextOptions.of(wanted, block, ComputeSettings.usual().withThreads(1));
            try (Context context =
                    new Context(model, options, new ContextOptions.EvalCallback(callback, MemorySegment.NULL))) {
                context.decode(new int[] {0}, 0);
            }
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
        if (found.failure != null) {
            throw found.failure;
        }
        return new Found(found.layers(n -> n >= wanted), found.layers(n -> n < wanted));
    }

    private List<Integer> layers(LongPredicate which) {
        return cells.entrySet().stream()
                .filter(e -> which.test(e.getValue()))
                .map(Map.Entry::getKey)
                .toList();
    }

    /** Called by llama.cpp for every node of the graph; nothing may be thrown out of it. */
    @SuppressWarnings("unused") // by its handle
    private boolean node(MemorySegment at, boolean ask, MemorySegment userData) {
        try {
            look(at);
        } catch (RuntimeException e) { // thrown on into llama.cpp, it would end the process
            failure = e;
        }
        return !ask; // nothing is asked for, and the graph goes on
    }

    private void look(MemorySegment at) {
        MemorySegment view = ggml_tensor.view_src(at.reinterpret(ggml_tensor.sizeof()));
        if (!view.equals(MemorySegment.NULL)) {
            MemorySegment cache = view.reinterpret(ggml_tensor.sizeof());
            String name = ggml_tensor.name(cache).getString(0);
            if (name.matches(LlamaCache.KEYS + "\\d{1,5}")) {
                cells.put(Integer.valueOf(name.substring(LlamaCache.KEYS.length())), ggml_tensor.ne(cache, 1));
            }
        }
    }
}
