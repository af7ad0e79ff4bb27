package dev.kvmerge.engine;

import dev.kvmerge.llama.Model;

/** A session's sampler, which goes on from one generation to the next while nothing is read between them. */
final class Drawings {
    private final Model model;
    private final History history;
    private Drawing current;

    Drawings(Model model, History history) {
        this.model = model;
        this.history = history;
    }

    /**
     * Refuses what no sampler can be made of.
     *
     * @throws dev.kvmerge.KvmergeException.Usage if the grammar is none, or a bias is of no token
     */
    void check(GenerateOptions options) {
        if (current == null || !current.isOf(options.sampling(), options.ignoreEos())) {
            Drawing.begin(model, options.sampling(), options.ignoreEos(), new int[0])
                    .close();
        }
    }

    /** The one that goes on, if it is of these options, else a new one. */
    Drawing of(GenerateOptions options) {
        if (current == null || !current.isOf(options.sampling(), options.ignoreEos())) {
            drop();
            current = Drawing.begin(model, options.sampling(), options.ignoreEos(), history.tokens());
        }
        return current;
    }

    /** The next generation begins anew. */
    void drop() {
        if (current != null) {
            current.close();
            current = null;
        }
    }

    /** Null where nothing would go on. */
    Drawing.State state() {
        return current == null ? null : current.state();
    }

    /** Goes on with another, or with none. */
    void resume(Drawing other) {
        drop();
        current = other;
    }
}
