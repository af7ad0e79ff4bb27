package dev.kvmerge.benchmarks;

import dev.kvmerge.kernels.Kvmerge;
import java.nio.file.Path;

/** The native library, for every fork. */
final class Native {
    private Native() {}

    static void load() {
        String home = System.getProperty("kvmerge.home", ".");
        Kvmerge.load(Path.of(home, "build/native", System.mapLibraryName("kvmerge")));
    }
}
