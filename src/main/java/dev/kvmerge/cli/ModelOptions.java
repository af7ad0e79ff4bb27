package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import java.nio.file.Path;
import java.util.List;
import picocli.CommandLine.Option;

/** What every command that runs a model takes, under llama.cpp's names. */
final class ModelOptions {
    @Option(
            names = {"-m", "--model"},
            paramLabel = "MODEL",
            defaultValue = "smollm2-135m",
            description = "a GGUF file, or a name from 'kvmerge models' (default: ${DEFAULT-VALUE})")
    String model;

    @Option(
            names = {"-t", "--threads"},
            paramLabel = "N",
            description = "CPU threads (default: all cores)")
    Integer threads;

    @Option(
            names = {"-ub", "--ubatch-size"},
            paramLabel = "N",
            defaultValue = "512",
            description = "most tokens computed at once (default: ${DEFAULT-VALUE})")
    int ubatch;

    @Option(
            names = {"-ngl", "--gpu-layers"},
            paramLabel = "N",
            description = "layers on the GPU (default: none on cpu, all on cuda)")
    Integer gpuLayers;

    @Option(
            names = "--device",
            paramLabel = "cpu|cuda",
            defaultValue = "cpu",
            description = "where layers and cells live (default: ${DEFAULT-VALUE})")
    String device;

    @Option(
            names = {"-fa", "--flash-attn"},
            paramLabel = "on|off|auto",
            description =
                    "flash attention (default: off, which shows the attention for less; auto for plain perplexity)")
    FlashAttention flashAttention;

    @Option(
            names = {"-ctk", "--cache-type-k"},
            paramLabel = "TYPE",
            defaultValue = "f16",
            description = "type of the K cells: ${COMPLETION-CANDIDATES} (default: ${DEFAULT-VALUE})")
    CellType keyType;

    @Option(
            names = {"-ctv", "--cache-type-v"},
            paramLabel = "TYPE",
            defaultValue = "f16",
            description = "type of the V cells (default: ${DEFAULT-VALUE})")
    CellType valueType;

    @Option(
            names = "--llama-lib",
            paramLabel = "DIR",
            description =
                    "folder of your own llama.cpp build (default: KVMERGE_LLAMA_LIB, else the one that was fetched)")
    Path llamaLib;

    @Option(
            names = {"-v", "--verbose"},
            description = "show llama.cpp's log")
    boolean verbose;

    int threads() {
        int n = threads == null ? Runtime.getRuntime().availableProcessors() : threads;
        if (n <= 0 || n > 1024) {
            throw new KvmergeException.Usage("-t must be 1 to 1024, not " + n);
        }
        return n;
    }

    /** Refuses cell types and layouts that kvmerge cannot rewrite yet, before anything is loaded. */
    void checkCells(FlashAttention chosen, Bias bias) {
        for (CellType type : List.of(keyType, valueType)) {
            if (type == CellType.Q4_0) {
                throw new KvmergeException.Usage(
                        "q4_0 cells cannot be rewritten yet: use -ctk and -ctv with f16, f32, bf16 or q8_0");
            }
        }
        if (valueType == CellType.Q8_0 && chosen == FlashAttention.OFF) {
            throw new KvmergeException.Usage(
                    "llama.cpp takes quantised V cells (-ctv q8_0) with flash attention only: add -fa on");
        }
        CompressedContext.checkBias(bias, chosen);
    }

    FlashAttention flashAttention(FlashAttention otherwise) {
        return flashAttention == null ? otherwise : flashAttention;
    }

    /** Loads the libraries. */
    LlamaLibrary library(Catalogue catalogue) {
        Kvmerge.load(Home.nativeLibrary());
        String environment = System.getenv("KVMERGE_LLAMA_LIB");
        Path folder = llamaLib != null
                ? llamaLib
                : environment != null ? Path.of(environment) : catalogue.locate(catalogue.find("llama.cpp"));
        return LlamaLibrary.load(folder, verbose);
    }

    /** Loads the libraries and the model. */
    Model load(Catalogue catalogue) {
        if (ubatch <= 0) {
            throw new KvmergeException.Usage("-ub must be positive, not " + ubatch);
        }
        int n = threads();
        Path path = catalogue.resolve(model, Catalogue.Kind.MODEL);
        LlamaLibrary library = library(catalogue);
        int layers = gpuLayers(library);
        try (Progress progress = new Progress("loading " + path.getFileName() + " on " + n + " threads")) {
            progress.update(-1, "");
            return Model.load(library, path, layers);
        }
    }

    private int gpuLayers(LlamaLibrary library) {
        switch (device) {
            case "cpu" -> {
                if (gpuLayers != null && gpuLayers != 0) {
                    throw new KvmergeException.Usage(
                            "-ngl " + gpuLayers + " puts layers on a GPU, and --device is cpu: add --device cuda");
                }
                return 0;
            }
            case "cuda" -> {
                if (library.gpu("CUDA").isEmpty()) {
                    throw new KvmergeException(
                            "--device cuda: the llama.cpp at " + library.folder() + " finds no CUDA device (it has "
                                    + String.join(
                                            ", ",
                                            library.devices().stream()
                                                    .map(LlamaLibrary.Device::name)
                                                    .toList())
                                    + "): use --device cpu, or a CUDA build with --llama-lib ('kvmerge models fetch llama.cpp-linux-x64-cuda' brings one)");
                }
                return gpuLayers == null ? -1 : gpuLayers;
            }
            default -> throw new KvmergeException.Usage("--device is cpu or cuda, not '" + device + "'");
        }
    }
}
