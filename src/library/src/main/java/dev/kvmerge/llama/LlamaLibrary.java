package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Llama_h;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.lang.reflect.Method;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * llama.cpp's shared libraries, loaded once a process. They live as long as the JVM: {@link System#load} ties them to
 * the class loader.
 */
public final class LlamaLibrary {
    /**
     * The llama.cpp version that the bindings were generated from: models.txt has it, which is packed with this class.
     */
    public static final String VERSION = versionOfModelsTxt();

    private static LlamaLibrary loaded;
    private static Path bound; // the folder whose libraries the class loader holds, until the JVM ends

    private final Path folder;
    private final String version;
    private final boolean verbose;
    private NativeLog log; // null until libkvmerge is there to keep it

    private LlamaLibrary(Path folder, String version, boolean verbose) {
        this.folder = folder;
        this.version = version;
        this.verbose = verbose;
    }

    /**
     * Loads llama.cpp from where {@value NativeLibrary#FOLDER_PROPERTY} or {@value NativeLibrary#FOLDER_ENVIRONMENT}
     * says, else from the jar kvmerge-natives, which is unpacked once to the user's cache folder. What is loaded
     * already stays.
     *
     * @throws KvmergeException as the other one, and if there is neither, or the jar cannot be unpacked
     */
    public static LlamaLibrary load() {
        return load(false);
    }

    /**
     * As above.
     *
     * @param verbose passes llama.cpp's own log on to standard error
     */
    public static synchronized LlamaLibrary load(boolean verbose) {
        return loaded != null ? loaded : load(Natives.folder(), verbose);
    }

    /**
     * Loads libggml-base, libggml and libllama from a folder, and the compute backends beside them. They are looked at
     * before they are bound to the class loader: a folder that is refused leaves nothing behind, and the next call may
     * name another. libkvmerge may be loaded before or after.
     *
     * @param folder holds the libraries, as in llama.cpp's build/bin
     * @param verbose passes llama.cpp's own log on to standard error
     * @throws KvmergeException if one is missing, truncated or cannot be loaded, or is not of version {@link #VERSION},
     *     if there is no compute backend, or if another build is loaded already
     */
    public static synchronized LlamaLibrary load(Path folder, boolean verbose) {
        Path absolute = real(folder);
        if (bound != null && !bound.equals(absolute)) {
            throw new KvmergeException("llama.cpp is already loaded from " + bound
                    + "; a process can hold one build of it: start another for " + absolute);
        }
        if (loaded != null) {
            return loaded;
        }
        checkWhole(absolute);
        List<Path> libraries = new ArrayList<>();
        List<SymbolLookup> lookups = new ArrayList<>();
        String version;
        try (Arena trial = Arena.ofConfined()) {
            for (String name : List.of("libggml-base", "libggml", "libllama")) {
                libraries.add(find(absolute, name));
                lookups.add(NativeLibrary.open(libraries.getLast(), trial));
            }
            version = checkVersion(absolute, lookups.getLast());
            checkFunctions(absolute, lookups);
            for (Path library : libraries) {
                System.load(library.toString());
            }
        } catch (UnsatisfiedLinkError e) {
            throw new KvmergeException("cannot load the llama.cpp at " + absolute + ": " + e.getMessage(), e);
        }
        bound = absolute;
        LlamaLibrary library = new LlamaLibrary(absolute, version, verbose);
        library.keepLog();
        Llama_h.llama_backend_init();
        try (Arena arena = Arena.ofConfined()) {
            Llama_h.ggml_backend_load_all_from_path(arena.allocateFrom(absolute.toString()));
        }
        if (library.devices().isEmpty()) {
            throw new KvmergeException("the llama.cpp at " + absolute
                    + " has no compute backend, not even for the CPU (libggml-cpu*): put one there and load it again");
        }
        loaded = library;
        return loaded;
    }

    private static Path real(Path folder) {
        Path absolute = folder.toAbsolutePath().normalize();
        if (!Files.isDirectory(absolute)) {
            throw new KvmergeException("no llama.cpp libraries at " + absolute
                    + ": run 'make setup', or give your own build with --llama-lib or KVMERGE_LLAMA_LIB");
        }
        try {
            return absolute.toRealPath();
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + absolute + ": " + e.getMessage(), e);
        }
    }

    /** All libraries of the folder: llama.cpp itself opens the backends among them. */
    private static void checkWhole(Path folder) {
        try (Stream<Path> files = Files.list(folder)) {
            files.filter(f -> f.getFileName().toString().matches("lib.*\\.so[0-9.]*") && Files.isRegularFile(f))
                    .forEach(ElfFile::checkWhole);
        } catch (IOException e) {
            throw new KvmergeException("cannot list " + folder + ": " + e.getMessage(), e);
        }
    }

    private static String versionOfModelsTxt() {
        try (InputStream list = LlamaLibrary.class.getResourceAsStream("models.txt")) {
            return new String(list.readAllBytes(), StandardCharsets.UTF_8)
                    .lines()
                    .filter(line -> line.startsWith("llama.cpp = "))
                    .map(line -> line.substring("llama.cpp = ".length()).strip())
                    .findFirst()
                    .orElseThrow();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    private static String checkVersion(Path folder, SymbolLookup llama) {
        String version = NativeLibrary.text(llama, "llama_version")
                .orElseThrow(() -> new KvmergeException("the llama.cpp at " + folder
                        + " has no llama_version(): it is older than " + VERSION + ", which kvmerge needs"));
        if (!version.equals(VERSION)
                && !version.startsWith(VERSION + "-")) { // the registry's build calls itself 0.5.0-dev
            throw new KvmergeException("the llama.cpp at " + folder + " is version " + version
                    + ", kvmerge's bindings are for " + VERSION
                    + ": use that version, or regenerate the bindings with 'make bindings'");
        }
        return version;
    }

    /**
     * A function that is not there would be found out at its first call, and its binding be broken for the life of the
     * JVM.
     */
    private static void checkFunctions(Path folder, List<SymbolLookup> libraries) {
        for (Method method : Llama_h.class.getMethods()) {
            String name = method.getName();
            if (name.matches("(llama|ggml)_[a-z_0-9]+")
                    && libraries.stream().noneMatch(l -> l.find(name).isPresent())) {
                throw new KvmergeException("the llama.cpp at " + folder + " has no " + name + "(), which version "
                        + VERSION + " has: build or fetch it again");
            }
        }
    }

    /** Gives llama.cpp our log as soon as libkvmerge is there; until then llama.cpp prints its own. */
    private synchronized boolean keepLog() {
        if (log == null && NativeLibrary.find()) {
            log = NativeLog.create(verbose);
            Llama_h.llama_log_set(log.callback(), log.userData());
        }
        return log != null;
    }

    private static Path find(Path folder, String name) {
        Pattern pattern = Pattern.compile(Pattern.quote(name) + "(\\.[A-Za-z0-9.]+)?\\.(so|dylib)(\\.[0-9.]+)?");
        try (Stream<Path> files = Files.list(folder)) {
            return files.filter(f -> pattern.matcher(f.getFileName().toString()).matches())
                    .min((a, b) ->
                            Integer.compare(a.toString().length(), b.toString().length()))
                    .orElseThrow(() -> new KvmergeException("no " + name + " library in " + folder
                            + ": give the folder of a llama.cpp build with --llama-lib or KVMERGE_LLAMA_LIB"));
        } catch (IOException e) {
            throw new KvmergeException("cannot list " + folder + ": " + e.getMessage(), e);
        }
    }

    /** What a compute device is. */
    public record Device(String name, String description, boolean gpu) {}

    /** The compute devices that llama.cpp found, the CPU among them. */
    public List<Device> devices() {
        List<Device> devices = new ArrayList<>();
        long n = Llama_h.ggml_backend_dev_count();
        for (long i = 0; i < n; i++) {
            MemorySegment device = Llama_h.ggml_backend_dev_get(i);
            int type = Llama_h.ggml_backend_dev_type(device);
            boolean gpu =
                    type == Llama_h.GGML_BACKEND_DEVICE_TYPE_GPU() || type == Llama_h.GGML_BACKEND_DEVICE_TYPE_IGPU();
            devices.add(new Device(
                    Llama_h.ggml_backend_dev_name(device).getString(0),
                    Llama_h.ggml_backend_dev_description(device).getString(0),
                    gpu));
        }
        return devices;
    }

    /** The first GPU whose name starts with a prefix such as "CUDA". */
    public Optional<Device> gpu(String prefix) {
        return devices().stream()
                .filter(d -> d.gpu() && d.name().startsWith(prefix))
                .findFirst();
    }

    /**
     * Makes the devices of llama.cpp RPC servers available, before a model is loaded on them ({@link Backend#ANY}).
     *
     * @param servers as "host:port"
     * @throws KvmergeException if the library has no RPC backend or a server does not answer
     */
    public void addRpcServers(List<String> servers) {
        MethodHandle add = backendFunction(
                "RPC", "ggml_backend_rpc_add_server", FunctionDescriptor.of(ValueLayout.ADDRESS, ValueLayout.ADDRESS));
        if (add == null) {
            throw new KvmergeException("--rpc: the llama.cpp at " + folder
                    + " has no RPC backend: build one with 'make llama-rpc' and give it with --llama-lib");
        }
        try (Arena arena = Arena.ofConfined()) {
            for (String server : servers) {
                checkReachable(server);
                MemorySegment added = (MemorySegment) add.invokeExact(arena.allocateFrom(server));
                if (added.equals(MemorySegment.NULL)) {
                    throw new KvmergeException("no RPC server of llama.cpp at " + server + ": " + takeLog());
                }
                Llama_h.ggml_backend_register(added);
            }
        } catch (RuntimeException | Error e) {
            throw e;
        } catch (Throwable e) {
            throw new KvmergeException("cannot add the RPC servers: " + e.getMessage(), e);
        }
    }

    /**
     * A function that a backend's library has beyond ggml's common ones; null where there is no such backend or
     * function.
     */
    static MethodHandle backendFunction(String backend, String name, FunctionDescriptor descriptor) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment registry = Llama_h.ggml_backend_reg_by_name(arena.allocateFrom(backend));
            if (registry.equals(MemorySegment.NULL)) {
                return null;
            }
            MemorySegment address = Llama_h.ggml_backend_reg_get_proc_address(registry, arena.allocateFrom(name));
            return address.equals(MemorySegment.NULL)
                    ? null
                    : Linker.nativeLinker().downcallHandle(address, descriptor);
        }
    }

    /** llama.cpp ends the process when a server does not answer: find out before. */
    private static void checkReachable(String server) {
        int colon = server.lastIndexOf(':');
        int port;
        try {
            port = Integer.parseInt(server.substring(colon + 1));
        } catch (NumberFormatException e) {
            port = -1;
        }
        if (colon <= 0 || port <= 0 || port > 65535) {
            throw new KvmergeException.Usage("--rpc takes host:port, separated by commas, not '" + server + "'");
        }
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress(server.substring(0, colon), port), 5000);
        } catch (IOException e) {
            throw new KvmergeException(
                    "no RPC server answers at " + server + " (" + e.getMessage()
                            + "): start llama.cpp's ggml-rpc-server there",
                    e);
        }
    }

    public Path folder() {
        return folder;
    }

    public String version() {
        return version;
    }

    /** llama.cpp's warnings and errors since the last call, in one line; empty when there were none. */
    String takeLog() {
        return keepLog() ? log.take().strip().replaceAll("\\s*\\R\\s*", "; ") : "";
    }
}
