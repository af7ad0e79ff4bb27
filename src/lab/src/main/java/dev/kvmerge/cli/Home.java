package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.models.Catalogue;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Where kvmerge's own files are: the checkout that the jar was built in, or an unpacked release. */
final class Home {
    private Home() {}

    static Path path() {
        String given = System.getProperty("kvmerge.home", System.getenv("KVMERGE_HOME"));
        if (given != null) {
            return Path.of(given).toAbsolutePath().normalize();
        }
        try { // <home>/target/kvmerge.jar or <home>/lib/kvmerge.jar
            Path code = Path.of(Main.class
                    .getProtectionDomain()
                    .getCodeSource()
                    .getLocation()
                    .toURI());
            return code.getParent().getParent();
        } catch (URISyntaxException | NullPointerException e) {
            throw new KvmergeException("cannot find kvmerge's folder: set KVMERGE_HOME to it", e);
        }
    }

    /** Whether this is what 'make dist' packs, which has the native libraries in a jar; else it is a checkout. */
    static boolean isRelease() {
        return Files.isRegularFile(path().resolve("lib/kvmerge.jar"));
    }

    static Catalogue catalogue() {
        String elsewhere = System.getenv("KVMERGE_DOWNLOADS");
        Path downloads = elsewhere == null ? path().resolve("downloads") : Path.of(elsewhere);
        return Catalogue.read(path().resolve("models.txt"), downloads);
    }

    /** The native library: KVMERGE_NATIVE_LIB, or where 'make build' puts it. */
    static Path nativeLibrary() {
        String elsewhere = System.getenv("KVMERGE_NATIVE_LIB");
        return elsewhere == null
                ? path().resolve("build/native/" + System.mapLibraryName("kvmerge"))
                : Path.of(elsewhere);
    }
}
