package dev.kvmerge;

import dev.kvmerge.eval.Text;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import java.nio.file.Path;
import java.util.Arrays;

/** The real model and the real book, loaded once for all tests. */
public final class TestModel {
    public static final Path HOME =
            Path.of(System.getProperty("kvmerge.home", ".")).toAbsolutePath();
    private static Model model;
    private static int[] book;

    private TestModel() {}

    public static Catalogue catalogue() {
        String elsewhere = System.getenv("KVMERGE_DOWNLOADS");
        return Catalogue.read(
                HOME.resolve("models.txt"), elsewhere == null ? HOME.resolve("downloads") : Path.of(elsewhere));
    }

    /** Loads our own native library. */
    public static void loadKernels() {
        Kvmerge.load(HOME.resolve("build/native/" + System.mapLibraryName("kvmerge")));
    }

    /** Loads the native libraries: 'make build setup' brings them. */
    public static LlamaLibrary library() {
        loadKernels();
        Catalogue catalogue = catalogue();
        return LlamaLibrary.load(catalogue.locate(catalogue.find("llama.cpp")), false);
    }

    public static synchronized Model model() {
        if (model == null) {
            model = Model.load(library(), path("smollm2-135m"), Backend.CPU, 0);
        }
        return model;
    }

    public static Path path(String name) {
        Catalogue catalogue = catalogue();
        return catalogue.locate(catalogue.find(name));
    }

    /** Tokens of the book. */
    public static synchronized int[] book(int offset, int n) {
        if (book == null) {
            book = model().tokenize(Text.read(path("alice")).content());
        }
        return Arrays.copyOfRange(book, offset, offset + n);
    }
}
