package dev.kvmerge.llama;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Where the native libraries are when nobody has named them: in the folder that {@value #FOLDER_PROPERTY} or
 * {@value #FOLDER_ENVIRONMENT} gives, else unpacked from the jar kvmerge-natives to the user's cache folder, under the
 * hash of what the jar holds.
 *
 * <p>The jar has a list of its files with their SHA-256 and sizes. What is unpacked is hashed once and gets the list as
 * its last file. Later starts compare the list and the sizes, and {@link ElfFile} what a library says of its own
 * length: a file that was cut is written again, one whose bytes were changed in place is not found out.
 */
final class Natives {
    /** System property: a folder with libkvmerge and llama.cpp's libraries. */
    static final String FOLDER_PROPERTY = "kvmerge.native.dir";
    /** Environment: the same. */
    static final String FOLDER_ENVIRONMENT = "KVMERGE_NATIVE_DIR";

    private static final String LIST = "files.txt";
    private static final Pattern LINE = Pattern.compile("([0-9a-f]{64}) ([0-9]{1,12}) ([A-Za-z0-9][A-Za-z0-9._-]*)");
    private static final String PART = ".part-";
    private static final Duration ABANDONED = Duration.ofDays(1);
    private static final String REMEDY = "name a folder with libkvmerge and llama.cpp's libraries with -D"
            + FOLDER_PROPERTY + "=FOLDER or " + FOLDER_ENVIRONMENT + "=FOLDER";

    private Natives() {}

    /** A file of the jar. */
    private record Entry(String sha256, long bytes, String name) {}

    /** The folder that somebody has named, which nothing else is asked before. */
    static Optional<Path> named() {
        String folder = System.getProperty(FOLDER_PROPERTY, System.getenv(FOLDER_ENVIRONMENT));
        return Optional.ofNullable(folder).map(Path::of);
    }

    /**
     * The folder with all libraries.
     *
     * @throws KvmergeException if none is named and no jar has them for this machine, or they cannot be unpacked
     */
    static Path folder() {
        return named().or(Natives::unpacked)
                .orElseThrow(() -> new KvmergeException("no native libraries for " + platform()
                        + ": add the dependency dev.kvmerge:kvmerge-natives with the classifier " + platform() + ", or "
                        + REMEDY));
    }

    /**
     * The folder that the jar's libraries are unpacked in, now or by an earlier start; empty where there is no such
     * jar.
     */
    static Optional<Path> unpacked() {
        byte[] list = resource(LIST);
        return list == null ? Optional.empty() : Optional.of(unpack(list, cache()));
    }

    /** This machine, as the jar's classifier names it. */
    static String platform() {
        String system = System.getProperty("os.name").toLowerCase(Locale.ROOT);
        String processor = System.getProperty("os.arch");
        return system + "-" + (processor.equals("amd64") ? "x86_64" : processor);
    }

    private static String path(String name) {
        return "META-INF/kvmerge/" + platform() + "/" + name; // no package: no module hides it
    }

    private static InputStream open(String name) {
        ClassLoader own = Natives.class.getClassLoader();
        InputStream in = own.getResourceAsStream(path(name));
        ClassLoader users = Thread.currentThread().getContextClassLoader();
        return in != null || users == null ? in : users.getResourceAsStream(path(name));
    }

    private static byte[] resource(String name) {
        try (InputStream in = open(name)) {
            return in == null ? null : in.readAllBytes();
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + path(name) + " in the jar of the native libraries: " + e, e);
        }
    }

    private static Path cache() {
        String given = System.getenv("XDG_CACHE_HOME");
        return given != null && Path.of(given).isAbsolute() // as the XDG specification asks
                ? Path.of(given, "kvmerge")
                : Path.of(System.getProperty("user.home"), ".cache", "kvmerge");
    }

    private static List<Entry> parse(byte[] list) {
        List<Entry> entries = new ArrayList<>();
        for (String line : new String(list, StandardCharsets.UTF_8).lines().toList()) {
            Matcher fields = LINE.matcher(line);
            if (!fields.matches()) {
                throw new KvmergeException(
                        path(LIST) + " in the jar of the native libraries is broken at '" + line + "': fetch it again");
            }
            entries.add(new Entry(fields.group(1), Long.parseLong(fields.group(2)), fields.group(3)));
        }
        return entries;
    }

    private static synchronized Path unpack(byte[] list, Path cache) {
        List<Entry> entries = parse(list);
        Path place = cache.resolve(Hash.sha256(list));
        try {
            if (whole(place, list, entries)) {
                return place;
            }
            Files.createDirectories(cache);
            deleteAbandoned(cache);
            Path part = Files.createTempDirectory(cache, PART);
            try {
                for (Entry entry : entries) {
                    write(entry, part.resolve(entry.name()));
                }
                Files.write(part.resolve(LIST), list);
                moveInto(place, part, list, entries);
            } finally {
                delete(part);
            }
            return place;
        } catch (IOException e) {
            throw new KvmergeException(
                    "cannot unpack the native libraries to " + place + " (" + e
                            + "): make that folder writable, set XDG_CACHE_HOME to one that is, or " + REMEDY,
                    e);
        }
    }

    /** Whether all files are there with their sizes, and the list, which is written last. */
    private static boolean whole(Path place, byte[] list, List<Entry> entries) throws IOException {
        Path marker = place.resolve(LIST);
        if (!Files.isRegularFile(marker) || !Arrays.equals(Files.readAllBytes(marker), list)) {
            return false;
        }
        for (Entry entry : entries) {
            Path file = place.resolve(entry.name());
            if (!Files.isRegularFile(file) || Files.size(file) != entry.bytes()) {
                return false;
            }
        }
        return true;
    }

    private static void write(Entry entry, Path file) throws IOException {
        try (InputStream in = open(entry.name())) {
            if (in == null) {
                throw new KvmergeException("the jar of the native libraries lacks " + path(entry.name())
                        + ", which its list has: fetch it again");
            }
            Files.copy(in, file);
        }
        if (!Hash.sha256(file).equals(entry.sha256())) {
            throw new KvmergeException(path(entry.name())
                    + " in the jar of the native libraries is not what its list says: fetch it again");
        }
    }

    /** In one step where nothing is there. Else file by file: another process may have the old ones open. */
    private static void moveInto(Path place, Path part, byte[] list, List<Entry> entries) throws IOException {
        if (!Files.isDirectory(place)) {
            try {
                Files.move(part, place, StandardCopyOption.ATOMIC_MOVE);
                return;
            } catch (IOException e) {
                if (!Files.isDirectory(place)) { // else another process was first
                    throw e;
                }
            }
        }
        if (whole(place, list, entries)) {
            return;
        }
        for (Entry entry : entries) {
            Files.move(
                    part.resolve(entry.name()),
                    place.resolve(entry.name()),
                    StandardCopyOption.ATOMIC_MOVE,
                    StandardCopyOption.REPLACE_EXISTING);
        }
        Files.move(
                part.resolve(LIST),
                place.resolve(LIST),
                StandardCopyOption.ATOMIC_MOVE,
                StandardCopyOption.REPLACE_EXISTING);
    }

    /** What processes left that were killed while they unpacked. One that is younger than a day may be at it. */
    private static void deleteAbandoned(Path cache) throws IOException {
        Instant old = Instant.now().minus(ABANDONED);
        try (DirectoryStream<Path> parts = Files.newDirectoryStream(cache, PART + "*")) {
            for (Path part : parts) {
                if (Files.getLastModifiedTime(part).toInstant().isBefore(old)) {
                    delete(part);
                }
            }
        }
    }

    private static void delete(Path part) throws IOException {
        if (!Files.isDirectory(part)) { // it was moved to its place
            return;
        }
        try (DirectoryStream<Path> files = Files.newDirectoryStream(part)) {
            for (Path file : files) {
                Files.deleteIfExists(file);
            }
        }
        Files.deleteIfExists(part);
    }
}
