package dev.kvmerge.benchmarks;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.ChainedOptionsBuilder;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;
import org.openjdk.jmh.runner.options.VerboseMode;

/**
 * Runs {@link KernelBenchmark} over the list of kernels and prints the table: {@code [--quick] [--only PREFIX]}. Quick
 * is one shape and size, in under two minutes. Where the python3 of the path, or the one that PYTHON names, has
 * PyTorch, that is timed too.
 */
public final class Table {
    private static final List<String> WITH_JAVA = List.of(
            "attention_stats",
            "attention_stats+entropy",
            "attention_stats-entropy-only",
            "find_spans",
            "query_moments",
            "gather_cells");
    private static final List<String> WITH_VECTOR =
            List.of("attention_stats", "attention_stats+entropy", "attention_stats-entropy-only", "query_moments");

    private static final int NO_PYTORCH = 3; // pytorch.py's status

    private Table() {}

    /** A line of the table: a kernel at a shape. */
    private record Case(String kernel, String shape, int cells) {}

    public static void main(String[] args) throws RunnerException, IOException {
        List<String> arguments = List.of(args);
        boolean quick = arguments.contains("--quick");
        List<Case> cases = new ArrayList<>();
        int only = arguments.indexOf("--only");
        for (String kernel : kernels()) {
            if (only >= 0 && !kernel.startsWith(arguments.get(only + 1))) {
                continue;
            }
            boolean logits = kernel.equals("log_sum_exp") || kernel.equals("kl_row");
            for (Problem.Shape shape : Problem.Shape.values()) {
                if ((quick || logits) && shape != Problem.Shape.SMOLLM2_135M) {
                    continue;
                }
                for (int cells : quick || logits ? new int[] {4096} : new int[] {512, 4096, 16384}) {
                    cases.add(new Case(kernel, shape.name(), cells));
                }
            }
        }
        Map<Case, Map<String, Double>> nanos = new LinkedHashMap<>();
        for (Case c : cases) {
            for (String version : List.of("kernel", "copy", "scalar", "vector")) {
                boolean there =
                        switch (version) {
                            case "scalar" -> WITH_JAVA.contains(c.kernel);
                            case "vector" -> WITH_VECTOR.contains(c.kernel);
                            default -> true;
                        };
                if (there) {
                    nanos.computeIfAbsent(c, k -> new LinkedHashMap<>()).put(version, time(c, version, quick));
                }
            }
            Double torch = pytorch(c, quick);
            if (torch != null) {
                nanos.get(c).put("pytorch", torch);
            }
            System.err.println(c + " " + nanos.get(c));
        }
        System.out.print(table(nanos));
    }

    private static List<String> kernels() {
        List<String> all = new ArrayList<>();
        for (String name : Kernels.names()) {
            all.add(name);
            if (name.equals("attention_stats")) {
                all.add("attention_stats+entropy");
                all.add("attention_stats-entropy-only");
            }
        }
        return all;
    }

    private static double time(Case c, String version, boolean quick) throws RunnerException {
        ChainedOptionsBuilder options = new OptionsBuilder()
                .include(KernelBenchmark.class.getName() + ".run")
                .param("kernel", c.kernel)
                .param("shape", c.shape)
                .param("cells", Integer.toString(c.cells))
                .param("version", version)
                .verbosity(VerboseMode.SILENT)
                .jvmArgsPrepend("-Dkvmerge.home=" + System.getProperty("kvmerge.home", "."));
        if (quick) {
            options.warmupIterations(1)
                    .warmupTime(TimeValue.milliseconds(200))
                    .measurementIterations(3)
                    .measurementTime(TimeValue.milliseconds(150));
        }
        RunResult result = new Runner(options.build()).run().iterator().next();
        // The best iteration: on a shared machine, the others measure the neighbours.
        return result.getBenchmarkResults().stream()
                .flatMap(b -> b.getIterationResults().stream())
                .mapToDouble(i -> i.getPrimaryResult().getScore())
                .min()
                .orElseThrow();
    }

    /** Nanoseconds in PyTorch; null where that is not here, or has no such thing. */
    private static Double pytorch(Case c, boolean quick) throws IOException {
        Problem.Shape shape = Problem.Shape.valueOf(c.shape);
        List<String> command = new ArrayList<>(List.of(
                System.getenv().getOrDefault("PYTHON", "python3"),
                System.getProperty("kvmerge.home", ".") + "/benchmarks/pytorch.py",
                c.kernel));
        for (int size : new int[] {shape.heads, shape.kvHeads, shape.dim, Problem.ROWS, c.cells, Problem.VOCABULARY}) {
            command.add(Integer.toString(size));
        }
        command.add(quick ? "0.4" : "2");
        Process process;
        try {
            process = new ProcessBuilder(command)
                    .redirectError(ProcessBuilder.Redirect.INHERIT)
                    .start();
        } catch (IOException e) {
            return null; // no python
        }
        String best = new String(process.getInputStream().readAllBytes(), java.nio.charset.StandardCharsets.US_ASCII);
        try {
            int status = process.waitFor();
            if (status != 0 && status != NO_PYTORCH) {
                throw new IOException(String.join(" ", command) + " ended with status " + status);
            }
            return status == 0 ? Double.valueOf(best.strip()) : null;
        } catch (InterruptedException e) {
            process.destroy();
            Thread.currentThread().interrupt();
            throw new IOException("interrupted", e);
        }
    }

    private static String table(Map<Case, Map<String, Double>> nanos) {
        StringBuilder text = new StringBuilder();
        text.append(String.format(
                Locale.ROOT,
                "%s, one core, JDK %s, %s.%n%n",
                processor(),
                Runtime.version().feature(),
                LocalDate.now()));
        text.append("| kernel | shape | cells | MB | us | GB/s | of copying | scalar Java | Vector API | PyTorch |\n");
        text.append("| :-- | :-- | --: | --: | --: | --: | --: | --: | --: | --: |\n");
        nanos.forEach((c, t) -> {
            long bytes = new Problem(c.kernel, Problem.Shape.valueOf(c.shape), c.cells).bytes;
            double own = t.get("kernel");
            text.append(String.format(
                    Locale.ROOT,
                    "| %s | %s | %d | %.1f | %.1f | %.1f | %.2f | %s | %s | %s |%n",
                    c.kernel,
                    c.shape.toLowerCase(Locale.ROOT).replace('_', '-'),
                    c.cells,
                    bytes / 1e6,
                    own / 1e3,
                    bytes / own,
                    t.get("copy") / own,
                    slower(t.get("scalar"), own),
                    slower(t.get("vector"), own),
                    slower(t.get("pytorch"), own)));
        });
        return text.toString();
    }

    private static String slower(Double other, double own) {
        return other == null ? "" : String.format(Locale.ROOT, "%.1f x slower", other / own);
    }

    private static String processor() {
        try {
            return new TreeSet<>(Files.readAllLines(Path.of("/proc/cpuinfo")).stream()
                            .filter(l -> l.startsWith("model name"))
                            .map(l -> l.substring(l.indexOf(':') + 1).strip())
                            .toList())
                    .first();
        } catch (IOException | RuntimeException e) {
            return System.getProperty("os.arch");
        }
    }
}
