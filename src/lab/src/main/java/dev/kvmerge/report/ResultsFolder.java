package dev.kvmerge.report;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.util.DefaultIndenter;
import com.fasterxml.jackson.core.util.DefaultPrettyPrinter;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.MapperFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.PropertyNamingStrategies;
import com.fasterxml.jackson.databind.json.JsonMapper;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import java.io.IOException;
import java.lang.reflect.RecordComponent;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;

/**
 * A folder of results, held by one process at a time. Every file is written under a temporary name and renamed, so that
 * what is there is whole at any moment.
 */
public final class ResultsFolder implements AutoCloseable {
    /**
     * What the name of a file ends in while it is being written: an experiment's own files are deleted with the rest.
     */
    public static final String PART = Experiment.PART;

    private static final String RESULTS = "results.json";
    private static final String FACTS = "facts.json";
    private static final String RULER = "ruler.json";
    /** What 'kvmerge report' reads: of experiments, facts and RULER's tasks. */
    public static final List<String> REPORTED = List.of(RESULTS, FACTS, RULER);
    /** What an experiment and its report write, beside traces. */
    private static final List<String> WRITTEN = List.of(
            "results.csv",
            "report.html",
            "report.md",
            "perplexity.svg",
            "kl.svg",
            "speed.svg",
            "memory.svg",
            "running-perplexity.svg",
            "kl-along-text.svg",
            RESULTS);

    private static final PropertyNamingStrategies.NamingBase NAMES = new PropertyNamingStrategies.SnakeCaseStrategy();
    private static final ObjectMapper JSON = JsonMapper.builder()
            .propertyNamingStrategy(NAMES)
            .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
            .disable(DeserializationFeature.ACCEPT_FLOAT_AS_INT)
            .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
            .enable(DeserializationFeature.FAIL_ON_NULL_FOR_PRIMITIVES)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .build();

    private final Path folder;
    private final FolderLock lock;

    private ResultsFolder(Path folder, FolderLock lock) {
        this.folder = folder;
        this.lock = lock;
    }

    /**
     * Opens a folder, making it if need be. One that was made and into which nothing was written is gone when it is
     * closed.
     *
     * @throws KvmergeException if it cannot be written, or another run holds it
     */
    public static ResultsFolder open(Path folder) {
        if (folder.toString().isEmpty()) {
            throw new KvmergeException.Usage("the results folder has an empty name: give one with --out");
        }
        FolderLock lock = null;
        try {
            lock = FolderLock.take(folder);
            if (lock == null) {
                throw new KvmergeException("another run is writing to the results folder " + folder
                        + ": wait for it, or choose another with --out");
            }
            ResultsFolder opened = new ResultsFolder(folder, lock);
            opened.deleteHalfWritten();
            return opened;
        } catch (IOException e) {
            if (lock != null) {
                lock.close();
            }
            throw new KvmergeException(
                    "cannot write to the results folder " + folder + " (" + e + "): choose another with --out", e);
        }
    }

    /** What a process that was killed, or ran out of space, left under temporary names would keep the disk full. */
    private void deleteHalfWritten() throws IOException {
        for (Path where : List.of(folder, folder.resolve("traces"))) {
            if (Files.isDirectory(where)) {
                try (DirectoryStream<Path> parts = Files.newDirectoryStream(where, "*" + PART)) {
                    for (Path part : parts) {
                        Files.deleteIfExists(part);
                    }
                }
            }
        }
    }

    /** Deletes what an experiment left here, so that none of it is taken for the next one's. Other files stay. */
    void clear() {
        if (!hasResults()) {
            return;
        }
        try {
            Path traces = folder.resolve("traces");
            if (Files.isDirectory(traces)) {
                try (DirectoryStream<Path> old = Files.newDirectoryStream(traces, "*.csv")) {
                    for (Path trace : old) {
                        Files.deleteIfExists(trace);
                    }
                }
            }
            for (String name : WRITTEN) {
                Files.deleteIfExists(folder.resolve(name));
            }
        } catch (IOException e) {
            throw new KvmergeException(
                    "cannot replace the results in " + folder + " (" + e + "): choose another --out", e);
        }
    }

    public Path path() {
        return folder;
    }

    public boolean hasResults() {
        return hasResults(folder);
    }

    /** Whether a folder has what an experiment found. */
    static boolean hasResults(Path folder) {
        return Files.exists(folder.resolve(RESULTS));
    }

    /** Whether a file is one that 'kvmerge report' reads. */
    public static boolean isReported(Path file) {
        return REPORTED.contains(file.getFileName().toString());
    }

    /** Reads results.json, as {@link #read(Path)}. */
    public Report read() {
        return read(folder);
    }

    /**
     * Reads a folder's results.json. It needs no lock: the file is whole at any moment.
     *
     * @throws KvmergeException if it cannot be read, or something in it is missing or cannot be
     */
    public static Report read(Path folder) {
        return readJson(folder.resolve(RESULTS), Report.class, ReportCheck::check);
    }

    /** What a report has to hold. */
    private interface Check<T> {
        void check(T report) throws ReportCheck.Wrong;
    }

    private static <T> T readJson(Path file, Class<T> kind, Check<T> check) {
        try {
            T report = JSON.readValue(file.toFile(), kind);
            check.check(report);
            return report;
        } catch (JsonProcessingException e) {
            throw broken(file, e.getOriginalMessage(), e);
        } catch (ReportCheck.Wrong e) {
            throw broken(file, e.getMessage(), e);
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + file + ": " + e, e);
        }
    }

    private static KvmergeException broken(Path file, String why, Exception e) {
        return new KvmergeException(
                "the results in " + file + " are broken (" + why + "): start anew with --overwrite", e);
    }

    /** Writes results.json and results.csv. */
    public void write(Report report) {
        writeJson(RESULTS, report);
        write("results.csv", csv(report.runs()));
    }

    private void writeJson(String name, Record content) {
        DefaultPrettyPrinter printer = new DefaultPrettyPrinter();
        printer.indentArraysWith(DefaultIndenter.SYSTEM_LINEFEED_INSTANCE);
        try {
            write(name, JSON.writer(printer).writeValueAsString(content) + "\n");
        } catch (JsonProcessingException e) {
            throw new IllegalStateException("results that are no JSON", e);
        }
    }

    /** Whether the folder has what 'kvmerge facts' found. */
    public boolean hasFacts() {
        return hasFacts(folder);
    }

    /** Whether a folder has it. */
    static boolean hasFacts(Path folder) {
        return Files.exists(folder.resolve(FACTS));
    }

    /** Reads facts.json, as {@link #read(Path)}. */
    public FactsReport readFacts() {
        return readFacts(folder);
    }

    /** Reads a folder's facts.json, as {@link #read(Path)}. */
    static FactsReport readFacts(Path folder) {
        return readJson(folder.resolve(FACTS), FactsReport.class, ReportCheck::check);
    }

    /** Writes facts.json and facts.csv. */
    public void write(FactsReport report) {
        writeJson(FACTS, report);
        write("facts.csv", FactsTable.csv(report.runs()));
    }

    /** Whether the folder has what 'kvmerge ruler' found. */
    public boolean hasRuler() {
        return hasRuler(folder);
    }

    /** Whether a folder has it. */
    static boolean hasRuler(Path folder) {
        return Files.exists(folder.resolve(RULER));
    }

    /** Reads ruler.json, as {@link #read(Path)}. */
    public RulerReport readRuler() {
        return readRuler(folder);
    }

    /** Reads a folder's ruler.json, as {@link #read(Path)}. */
    static RulerReport readRuler(Path folder) {
        return readJson(folder.resolve(RULER), RulerReport.class, ReportCheck::check);
    }

    /** Writes ruler.json and ruler.csv. */
    public void write(RulerReport report) {
        writeJson(RULER, report);
        write("ruler.csv", RulerTable.csv(report.readings()));
    }

    private static String csv(List<RunResult> runs) {
        RecordComponent[] columns = RunResult.class.getRecordComponents();
        StringBuilder text = new StringBuilder();
        text.append(Arrays.stream(columns)
                        .map(c -> NAMES.translate(c.getName()))
                        .collect(Collectors.joining(",")))
                .append('\n');
        for (RunResult run : runs) {
            text.append(Arrays.stream(columns).map(c -> quoted(value(run, c))).collect(Collectors.joining(",")))
                    .append('\n');
        }
        return text.toString();
    }

    private static Object value(RunResult run, RecordComponent column) {
        try {
            return column.getAccessor().invoke(run);
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
    }

    /** A cell of a CSV file. */
    static String quoted(Object value) {
        String text = value == null ? "" : value.toString();
        return text.matches("(?s).*[\",\r\n].*") ? '"' + text.replace("\"", "\"\"") + '"' : text;
    }

    /** Writes a run's token-by-token figures to traces/. */
    public void writeTrace(String id, Trace trace) {
        StringBuilder text = new StringBuilder("token,nll,kl,same_top\n");
        for (int i = 0; i < trace.nll().length; i++) {
            boolean compared = !Double.isNaN(trace.kl()[i]);
            text.append(i)
                    .append(',')
                    .append(number(trace.nll()[i]))
                    .append(',')
                    .append(number(trace.kl()[i]))
                    .append(',')
                    .append(compared ? trace.sameTop()[i] ? "1" : "0" : "")
                    .append('\n');
        }
        write("traces/" + id + ".csv", text.toString());
    }

    private static String number(double x) {
        return Double.isNaN(x) ? "" : Double.toString(x);
    }

    /** Reads a run's token-by-token figures; null if they are not there or not for this many tokens. */
    public Trace readTrace(String id, int tokens) {
        Path file = folder.resolve("traces/" + id + ".csv");
        try {
            List<String> lines = Files.exists(file) ? Files.readAllLines(file) : List.of();
            if (lines.size() - 1 != tokens) {
                return null;
            }
            double[] nll = new double[tokens];
            double[] kl = new double[tokens];
            boolean[] sameTop = new boolean[tokens];
            for (int i = 0; i < tokens; i++) {
                String[] column = lines.get(i + 1).split(",", -1);
                nll[i] = column[1].isEmpty() ? Double.NaN : Double.parseDouble(column[1]);
                kl[i] = column[2].isEmpty() ? Double.NaN : Double.parseDouble(column[2]);
                sameTop[i] = column[3].equals("1");
            }
            return new Trace(nll, kl, sameTop);
        } catch (IOException | RuntimeException e) {
            return null;
        }
    }

    /** Writes a file of the folder as a whole. */
    public void write(String name, String content) {
        write(name, content.getBytes(StandardCharsets.UTF_8));
    }

    /** Writes a file of the folder as a whole. */
    public void write(String name, byte[] content) {
        Path file = folder.resolve(name);
        Path temporary = file.resolveSibling("." + file.getFileName() + PART);
        try {
            Files.createDirectories(file.getParent());
            Files.write(temporary, content);
            Files.move(temporary, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } catch (IOException e) {
            try {
                Files.deleteIfExists(temporary); // half a file would keep a full disk full
            } catch (IOException second) {
                e.addSuppressed(second);
            }
            throw new KvmergeException(
                    String.format(
                            Locale.ROOT,
                            "cannot write %s (%s): free space there, or choose another folder with --out",
                            file,
                            e),
                    e);
        }
    }

    @Override
    public void close() {
        lock.close();
    }
}
