package dev.kvmerge.llama;

/** Where a model's layers and cells live. */
public enum Backend {
    /** In host memory; no GPU is used at all. */
    CPU,
    /** On CUDA devices; kvmerge's kernels work there too. */
    CUDA,
    /** On whatever devices llama.cpp finds (Vulkan, Metal, RPC, ...); kvmerge works on copies in host memory. */
    ANY
}
