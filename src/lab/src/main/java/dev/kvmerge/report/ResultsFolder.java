package dev.kvmerge.report;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.util.DefaultIndenter;
import com.fasterxml.jackson.core.util.DefaultPrettyPrinter;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.PropertyNamingStrategies;
import com.fasterxml.jackson.databind.json.JsonMapper;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import java.io.IOException;
import java.lang.reflect.RecordComponent;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;

/**
 * A folder of results, held by one process at a time. Every file is written under a temporary name and renamed, so that what is there is
 * whole at any moment.
 */
public final class ResultsFolder implements AutoCloseable {
    private static final String RESULTS = "results.json";
    private static final PropertyNamingStrategies.NamingBase NAMES = new PropertyNamingStrategies.SnakeCaseStrategy();
    private static final ObjectMapper JSON = JsonMapper.builder()
            .propertyNamingStrategy(NAMES)
            .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
            .build();

    private final Path folder;
    private final FileChannel lockFile;

    private ResultsFolder(Path folder, FileChannel lockFile) {
        this.folder = folder;
        this.lockFile = lockFile;
    }

    /**
     * Opens a folder, making it if need be.
     *
     * @throws KvmergeException if it cannot be written, or another process holds it
     */
    public static ResultsFolder open(Path folder) {
        FileChannel channel = null;
        try {
            Files.createDirectories(folder);
            channel = FileChannel.open(folder.resolve(".lock"), StandardOpenOption.CREATE, StandardOpenOption.WRITE);
            FileLock lock = channel.tryLock();
            if (lock == null) {
                channel.close();
                throw inUse(folder);
            }
            return new ResultsFolder(folder, channel);
        } catch (OverlappingFileLockException e) {
            throw inUse(folder);
        } catch (IOException e) {
            throw new KvmergeException(
                    "cannot write to the results folder " + folder + " (" + e + "): choose another with --out", e);
        }
    }

    private static KvmergeException inUse(Path folder) {
        return new KvmergeException("another run is writing to the results folder " + folder
                + ": wait for it, or choose another with --out");
    }

    public Path path() {
        return folder;
    }

    public boolean hasResults() {
        return Files.exists(folder.resolve(RESULTS));
    }

    /**
     * Reads results.json.
     *
     * @throws KvmergeException if it cannot be read or is broken
     */
    public Report read() {
        Path file = folder.resolve(RESULTS);
        try {
            Report report = JSON.readValue(file.toFile(), Report.class);
            if (report.runs() == null
                    || report.model() == null
                    || report.text() == null
                    || report.settings() == null
                    || report.versions() == null) {
                throw new KvmergeException("the results in " + file
                        + " lack their runs, model, text, settings or versions: start anew with --overwrite");
            }
            return report;
        } catch (JsonProcessingException e) {
            throw new KvmergeException(
                    "the results in " + file + " are broken (" + e.getOriginalMessage()
                            + "): start anew with --overwrite",
                    e);
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + file + ": " + e, e);
        }
    }

    /** Writes results.json and results.csv. */
    public void write(Report report) {
        DefaultPrettyPrinter printer = new DefaultPrettyPrinter();
        printer.indentArraysWith(DefaultIndenter.SYSTEM_LINEFEED_INSTANCE);
        try {
            write(RESULTS, JSON.writer(printer).writeValueAsString(report) + "\n");
        } catch (JsonProcessingException e) {
            throw new IllegalStateException("results that are no JSON", e);
        }
        write("results.csv", csv(report.runs()));
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

    private static String quoted(Object value) {
        String text = value == null ? "" : value.toString();
        return text.matches(".*[\",\\n].*") ? '"' + text.replace("\"", "\"\"") + '"' : text;
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
        double[] nll = new double[tokens];
        double[] kl = new double[tokens];
        boolean[] sameTop = new boolean[tokens];
        try {
            List<String> lines = Files.exists(file) ? Files.readAllLines(file) : List.of();
            if (lines.size() != tokens + 1) {
                return null;
            }
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
        Path temporary = file.resolveSibling("." + file.getFileName() + ".part");
        try {
            Files.createDirectories(file.getParent());
            Files.write(temporary, content);
            Files.move(temporary, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } catch (IOException e) {
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
        try {
            lockFile.close(); // and with it the lock
            Files.deleteIfExists(folder.resolve(".lock"));
        } catch (IOException e) {
            // A lock file without a lock hinders nobody.
        }
    }
}
