package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.Guard;
import dev.kvmerge.llama.NativeLibrary;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;

/**
 * The observers of a context of several sequences, one for each: hand {@link #callback()} to the context. Each sees its
 * sequence as if that were alone: cells are numbered within it, and blocks begin and end independently of the others.
 * Close the group after its context. One thread at a time for all of them, but for what an {@link Observer} says may
 * run on several.
 */
public final class ObserverGroup implements AutoCloseable {
    private final Guard guard = new Guard("the observers");
    private final MemorySegment handle;
    private final ContextOptions.EvalCallback callback;
    private final List<Observer> sequences = new ArrayList<>();

    /**
     * Makes a group. llama.cpp must be loaded.
     *
     * @param cells cells of each sequence, after llama.cpp's rounding
     * @param block most tokens of a sequence between two begins
     * @param n sequences
     */
    public ObserverGroup(Shape shape, int cells, int block, Observer.Options options, int n) {
        ContextOptions.range("sequences", n, ContextOptions.MOST_SEQUENCES);
        NativeLibrary.require();
        try (Arena local = Arena.ofConfined()) {
            MemorySegment group = local.allocate(ValueLayout.ADDRESS);
            MemorySegment streams = local.allocate(ValueLayout.ADDRESS, n);
            Kvmerge.check(Kvmerge_h.kvmerge_observer_create_group(
                    ObserverParams.of(local, shape, cells, block, options), n, group, streams));
            handle = group.get(ValueLayout.ADDRESS, 0);
            callback = new ContextOptions.EvalCallback(Kvmerge_h.kvmerge_eval_callback$address(), handle, guard);
            try {
                for (int i = 0; i < n; i++) {
                    MemorySegment stream = streams.getAtIndex(ValueLayout.ADDRESS, i);
                    sequences.add(new Observer(shape, cells, block, options, stream, this));
                }
            } catch (RuntimeException | Error e) {
                close();
                throw e;
            }
        }
    }

    Guard guard() {
        return guard;
    }

    /** What to give to the context. */
    public ContextOptions.EvalCallback callback() {
        if (guard.isClosed()) {
            throw new IllegalStateException("the observers are closed");
        }
        return callback;
    }

    /** The observer of a sequence. */
    public Observer sequence(int i) {
        return sequences.get(i);
    }

    /** How many there are. */
    public int size() {
        return sequences.size();
    }

    /**
     * Frees the observers.
     *
     * @throws IllegalStateException if a context that calls them is still open, or a thread is inside; they stay open
     *     then
     */
    @Override
    public void close() {
        guard.close(() -> {
            if (callback.inUse()) {
                throw new IllegalStateException("the observers' context is still open: close that first");
            }
            Kvmerge.check(Kvmerge_h.kvmerge_observer_free(handle));
            sequences.forEach(Observer::free);
        });
    }
}
