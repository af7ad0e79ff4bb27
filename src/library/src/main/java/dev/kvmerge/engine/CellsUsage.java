package dev.kvmerge.engine;

import dev.kvmerge.cache.CompressedContext;

/**
 * How full a session's cells are: what {@link CellsView} tells without what became of each token. It costs nothing to
 * ask.
 *
 * @param tokens that the cache has had
 * @param cellsInUse of each layer and KV head
 * @param cellsAllocated of each layer and KV head
 * @param bytes of the cells allocated; 0 before the first token
 * @param pinned leading tokens that were there when the session was pinned; 0 if it was not
 */
public record CellsUsage(int tokens, int cellsInUse, int cellsAllocated, long bytes, int pinned) {
    /** On the scheduler's thread. */
    static CellsUsage of(Engine engine, Sequence sequence, int pinned) {
        CompressedContext context = sequence.context();
        int tokens = context.position();
        return new CellsUsage(
                tokens,
                context.used(),
                engine.cache().allocated(),
                tokens == 0 ? 0 : context.info().bytes(),
                pinned);
    }
}
