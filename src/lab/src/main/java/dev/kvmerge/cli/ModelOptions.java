package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheChecks;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.CellTypes;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ComputeSettings.Observation;
import dev.kvmerge.llama.ContextOptions.CellType;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.strategy.Foreknowing;
import dev.kvmerge.strategy.Method;
import dev.kvmerge.strategy.Strategy;
import java.nio.file.Path;
import java.util.List;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParseResult;

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
            description = "layers on the device (default: all)")
    Integer gpuLayers;

    @Option(
            names = "--device",
            paramLabel = "cpu|cuda|any",
            description = "where layers and cells live: cuda works on them there, any is whatever else llama.cpp finds"
                    + " (Vulkan, Metal, RPC), by way of copies (default: cpu; any with --rpc)")
    String device;

    @Option(
            names = "--rpc",
            paramLabel = "HOST:PORT",
            split = ",",
            description = "llama.cpp RPC servers to spread the layers over; needs a build with RPC ('make llama-rpc')")
    List<String> rpc;

    @Option(
            names = {"-fa", "--flash-attn"},
            paramLabel = "on|off|auto",
            description =
                    "flash attention (default: off, which shows the attention for less; auto for plain perplexity; "
                            + "bench"
                            + " tries both)")
    FlashAttention flashAttention;

    @Option(
            names = {"-ctk", "--cache-type-k"},
            paramLabel = "TYPE",
            defaultValue = "f16",
            description = "type of the K cells: f16, f32, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl (default: "
                    + "${DEFAULT-VALUE})")
    CellType keyType;

    @Option(
            names = {"-ctv", "--cache-type-v"},
            paramLabel = "TYPE",
            defaultValue = "f16",
            description = "type of the V cells, likewise; a quantised one needs -fa on (default: ${DEFAULT-VALUE})")
    CellType valueType;

    @Option(
            names = "--observe",
            paramLabel = "auto|capture|stop",
            defaultValue = "auto",
            description =
                    "capture each layer's queries as llama.cpp's graph runs, or stop the graph at each layer, as it"
                            + " is where capturing cannot be; auto stops with -fa off on the CPU, which costs no more"
                            + " there (default: ${DEFAULT-VALUE})")
    Observation observation;

    @Option(
            names = "--observe-queries",
            paramLabel = "N",
            description = "with captured queries: look at about N of a block's, evenly spaced; 0 for all (default: "
                    + ComputeSettings.OBSERVED_QUERIES + ")")
    Integer observedQueries;

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
        checkThreads(n);
        return n;
    }

    static void checkThreads(int n) {
        if (n <= 0 || n > ComputeSettings.MOST_THREADS) {
            throw new KvmergeException.Usage("-t must be 1 to " + ComputeSettings.MOST_THREADS + ", not " + n);
        }
    }

    /** Whether the command line says of what types the cells are. */
    boolean hasCellTypes(CommandSpec command) {
        ParseResult given = command.commandLine().getParseResult();
        return given.hasMatchedOption("-ctk") || given.hasMatchedOption("-ctv");
    }

    /** The types that the command line names, or else those that lose least in the room. */
    CellTypes cellTypes(CommandSpec command, KvMemory.Room room) {
        return hasCellTypes(command) ? new CellTypes(keyType, valueType) : KvMemory.best(room);
    }

    /** Refuses cell types that llama.cpp does not take with these settings, before anything is loaded. */
    void checkCells(ComputeSettings compute, Bias bias) {
        compute.checkCellTypes();
        CacheChecks.checkBias(bias, compute.flashAttention());
    }

    /** Refuses an exact bias that a strategy's own parameters ask for, before a full cache is run to compare with. */
    static void checkBias(ComputeSettings compute, List<? extends Method> methods) {
        for (Method method : methods) {
            if (method instanceof Strategy strategy) {
                CacheChecks.checkBias(strategy.needs().bias(), compute.flashAttention());
            }
        }
    }

    /**
     * Refuses to say how attention is observed where nothing asks for it.
     *
     * @param methods those that run
     */
    static void checkObserved(CommandSpec command, List<? extends Method> methods) {
        checkObservation(command, methods);
        checkCaptured(command, methods);
    }

    /** The same of --observe. */
    static void checkObservation(CommandSpec command, List<? extends Method> methods) {
        if (methods.stream().noneMatch(ModelOptions::observes)) {
            StrategyOptions.refuse(
                    command, List.of("--observe"), "goes with a strategy that asks for attention or queries");
        }
    }

    /**
     * The same of --observe-queries.
     *
     * @param methods those whose queries may be captured
     */
    static void checkCaptured(CommandSpec command, List<? extends Method> methods) {
        if (methods.stream().noneMatch(ModelOptions::observesMass)) {
            StrategyOptions.refuse(
                    command,
                    List.of("--observe-queries"),
                    "goes with captured queries and a strategy that asks for attention");
        }
    }

    private static boolean observes(Method method) {
        return method instanceof Foreknowing
                || method instanceof Strategy strategy && strategy.needs().observes();
    }

    /** Whether a method looks at the attention. */
    static boolean observesMass(Method method) {
        return method instanceof Foreknowing
                || method instanceof Strategy strategy && strategy.needs().mass();
    }

    /**
     * How llama.cpp computes, as the options have it.
     *
     * @param otherwise flash attention where the options do not say
     */
    ComputeSettings compute(FlashAttention otherwise) {
        return compute(otherwise, false);
    }

    /**
     * As above.
     *
     * @param besides whether there are runs with flash attention all the same, which quantised V cells need
     */
    ComputeSettings compute(FlashAttention otherwise, boolean besides) {
        if (ubatch <= 0) {
            throw new KvmergeException.Usage("-ub must be positive, not " + ubatch);
        }
        FlashAttention chosen = flashAttention == null ? otherwise : flashAttention;
        ComputeSettings compute = new ComputeSettings(
                threads(),
                ubatch,
                chosen,
                keyType,
                valueType,
                observation,
                observedQueries == null ? ComputeSettings.OBSERVED_QUERIES : observedQueries);
        boolean captures = captures(compute) || besides && observation != Observation.STOP;
        if (observedQueries != null && !captures) {
            throw new KvmergeException.Usage(
                    "--observe-queries is of captured queries: add -fa on or --observe capture,"
                            + " or leave it out, since here it has no effect");
        }
        return compute;
    }

    /** Loads the libraries. */
    LlamaLibrary library(Catalogue catalogue) {
        String environment = System.getenv("KVMERGE_LLAMA_LIB");
        if (Home.isRelease()) { // the first use finds libkvmerge
            Path own = llamaLib != null || environment == null ? llamaLib : Path.of(environment);
            return own == null ? LlamaLibrary.load(verbose) : LlamaLibrary.load(own, verbose);
        }
        Kvmerge.load(Home.nativeLibrary());
        Path folder = llamaLib != null
                ? llamaLib
                : environment != null ? Path.of(environment) : catalogue.locate(catalogue.find("llama.cpp"));
        return LlamaLibrary.load(folder, verbose);
    }

    /** Loads the libraries and the model. */
    Model load(Catalogue catalogue) {
        int n = threads();
        Path path = catalogue.resolve(model, Catalogue.Kind.MODEL);
        LlamaLibrary library = library(catalogue);
        Backend backend = backend(library);
        try (Progress progress =
                new Progress("loading " + path.getFileName() + " on " + n + (n == 1 ? " thread" : " threads"))) {
            progress.update(-1, "");
            return Model.load(library, path, backend, gpuLayers == null ? -1 : gpuLayers);
        }
    }

    /** Whether queries are captured, of all runs and not of those alone that turn flash attention on. */
    boolean captures(ComputeSettings compute) {
        return compute.captures(isOnCpu());
    }

    /** Whether all layers and cells are the CPU's. */
    boolean isOnCpu() {
        return rpc == null && (device == null || device.equals("cpu"));
    }

    /** Whether the command line says so. */
    boolean onCuda() {
        return "cuda".equals(device);
    }

    private Backend backend(LlamaLibrary library) {
        if (rpc != null) {
            if (device != null && !device.equals("any")) {
                throw new KvmergeException.Usage("--rpc goes with --device any, not " + device);
            }
            library.addRpcServers(rpc);
            return Backend.ANY;
        }
        switch (device == null ? "cpu" : device) {
            case "cpu" -> {
                if (gpuLayers != null && gpuLayers != 0) {
                    throw new KvmergeException.Usage(
                            "-ngl " + gpuLayers + " puts layers on a device, and --device is cpu: add --device cuda");
                }
                return Backend.CPU;
            }
            case "cuda" -> {
                if (library.gpu("CUDA").isEmpty()) {
                    throw new KvmergeException("--device cuda: the llama.cpp at " + library.folder()
                            + " finds no CUDA device (it has " + names(library)
                            + "): use --device cpu, or a CUDA build with --llama-lib ('kvmerge models fetch "
                            + "llama.cpp-linux-x64-cuda' brings one)");
                }
                Kvmerge.requireCuda();
                return Backend.CUDA;
            }
            case "any" -> {
                if (library.gpu("").isEmpty()) {
                    throw new KvmergeException("--device any: the llama.cpp at " + library.folder()
                            + " finds nothing but the CPU (" + names(library) + "): use --device cpu, or --rpc");
                }
                return Backend.ANY;
            }
            default -> throw new KvmergeException.Usage("--device is cpu, cuda or any, not '" + device + "'");
        }
    }

    private static String names(LlamaLibrary library) {
        return String.join(
                ", ", library.devices().stream().map(LlamaLibrary.Device::name).toList());
    }
}
