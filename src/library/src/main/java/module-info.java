/** A llama.cpp context held within a fixed number of KV cells. docs/java.md shows how it is used. */
module dev.kvmerge {
    exports dev.kvmerge;
    exports dev.kvmerge.attention;
    exports dev.kvmerge.cache;
    exports dev.kvmerge.engine;
    exports dev.kvmerge.kernels;
    exports dev.kvmerge.llama;
    exports dev.kvmerge.strategy;

    uses dev.kvmerge.engine.ChatTemplate.Provider;
}
