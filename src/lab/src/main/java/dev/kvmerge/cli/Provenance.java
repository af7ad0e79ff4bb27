package dev.kvmerge.cli;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Text;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import dev.kvmerge.report.FactsReport;
import dev.kvmerge.report.Report;
import dev.kvmerge.report.RulerReport;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** What results.json says of the software, the machine, the model and the text. */
final class Provenance {
    private Provenance() {}

    /**
     * The report of an experiment that has no runs yet; reads the model's file for its checksum.
     *
     * @param options as {@link GivenOptions} has them
     */
    static Report of(Model model, Text text, int offset, Report.Settings settings, Map<String, String> options) {
        return new Report(
                versions(model),
                machine(model),
                model(model),
                new Report.TextInfo(text.path().getFileName().toString(), text.sha256(), offset),
                settings,
                options,
                List.of());
    }

    /** The report of a conversation that nobody was asked about yet; likewise. */
    static FactsReport of(Model model, FactsReport.Settings settings, Map<String, String> options) {
        return new FactsReport(versions(model), machine(model), model(model), settings, options, List.of());
    }

    /** The report of tasks that no cache has been asked yet; likewise. */
    static RulerReport of(Model model, Text text, RulerReport.Settings settings, Map<String, String> options) {
        return new RulerReport(
                versions(model),
                machine(model),
                model(model),
                new Report.TextInfo(text.path().getFileName().toString(), text.sha256(), 0),
                settings,
                options,
                List.of());
    }

    private static Report.Versions versions(Model model) {
        return new Report.Versions(
                Main.Version.text(),
                model.library().version(),
                Runtime.version().toString());
    }

    private static Report.Machine machine(Model model) {
        String gpu = model.library().devices().stream()
                .filter(LlamaLibrary.Device::gpu)
                .map(LlamaLibrary.Device::description)
                .findFirst()
                .orElse(null);
        return new Report.Machine(
                cpu(),
                Runtime.getRuntime().availableProcessors(),
                Kvmerge.instructionSet(),
                model.backend().name().toLowerCase(Locale.ROOT),
                model.backend() == Backend.CPU ? null : gpu);
    }

    private static Report.ModelInfo model(Model model) {
        String architecture = model.metadata("general.architecture");
        String keyLength = model.metadata(architecture + ".attention.key_length");
        String embedding = model.metadata(architecture + ".embedding_length");
        Integer headDim = keyLength != null
                ? Integer.valueOf(keyLength)
                : embedding != null ? Integer.valueOf(embedding) / model.shape().heads() : null;
        String description = model.description();
        return new Report.ModelInfo(
                model.path().getFileName().toString(),
                checksum(model.path()),
                architecture,
                description,
                model.shape().layers(),
                model.shape().heads(),
                model.shape().kvHeads(),
                headDim,
                description.substring(description.lastIndexOf(' ') + 1));
    }

    private static String checksum(Path file) {
        try (Progress progress = new Progress("checksum of " + file.getFileName())) {
            progress.update(-1, "");
            return Hash.sha256(file);
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + file + ": " + e, e);
        }
    }

    /** The processor, as the system names it. */
    static String cpu() {
        try {
            for (String line : Files.readAllLines(Path.of("/proc/cpuinfo"))) {
                if (line.startsWith("model name")) {
                    return line.substring(line.indexOf(':') + 1).strip();
                }
            }
        } catch (IOException e) {
            // Not Linux.
        }
        return System.getProperty("os.arch");
    }
}
