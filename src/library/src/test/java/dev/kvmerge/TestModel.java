package dev.kvmerge;

import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/** The real model and the real book, loaded once for all tests. */
public final class TestModel {
    public static final Path HOME =
            Path.of(System.getProperty("kvmerge.home", ".")).toAbsolutePath().normalize();
    private static Model model;
    private static int[] book;

    private TestModel() {}

    /** Where 'make setup' puts what it fetches. */
    public static Path downloads() {
        String elsewhere = System.getenv("KVMERGE_DOWNLOADS");
        return elsewhere == null ? HOME.resolve("downloads") : Path.of(elsewhere);
    }

    /** Our own native library: 'make build' brings it. */
    public static Path nativeLibrary() {
        return HOME.resolve("build/native/" + System.mapLibraryName("kvmerge"));
    }

    /** llama.cpp's libraries: 'make setup' brings them. */
    public static Path llamaFolder() {
        String arch = System.getProperty("os.arch").equals("aarch64") ? "arm64" : "x64";
        return downloads().resolve("llama.cpp-linux-" + arch);
    }

    /** Loads our own native library. */
    public static void loadKernels() {
        Kvmerge.load(nativeLibrary());
    }

    /** Loads the native libraries: 'make build setup' brings them. */
    public static LlamaLibrary library() {
        loadKernels();
        return LlamaLibrary.load(llamaFolder(), false);
    }

    /** A tiny model of random weights, written to a folder: its tokens mean nothing. */
    public static Model tiny(Path folder) {
        TinyGguf.Geometry tiny = new TinyGguf.Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
        return Model.load(library(), TinyGguf.write(folder.resolve("tiny.gguf"), tiny), Backend.CPU, 0);
    }

    public static synchronized Model model() {
        if (model == null) {
            model = Model.load(library(), path(), Backend.CPU, 0);
        }
        return model;
    }

    /** The model's file. */
    public static Path path() {
        return downloads().resolve("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    }

    /** Tokens of the book. */
    public static synchronized int[] book(int offset, int n) {
        if (book == null) {
            try {
                book = model().tokenize(Files.readString(downloads().resolve("texts/alice.txt")));
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
        return Arrays.copyOfRange(book, offset, offset + n);
    }
}
