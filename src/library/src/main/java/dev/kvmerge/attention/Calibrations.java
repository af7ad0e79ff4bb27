package dev.kvmerge.attention;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.io.InputStream;
import java.math.BigDecimal;
import java.math.MathContext;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Locale;
import java.util.Map;
import java.util.regex.Pattern;

/** Calibrations as files: a user's own beside the model, or one that comes with kvmerge. */
public final class Calibrations {
    /** What is added to a model's file name. */
    public static final String SUFFIX = ".calibration.json";

    private static final Pattern QUANTISATION = Pattern.compile("(?i)[-.](i?q\\d\\w*|bf16|fp?16|fp?32)$");
    private static final int DIGITS = 5;

    /** The names of the models whose calibrations come with kvmerge, in small letters, and each one's file. */
    private static final Map<String, String> SHIPPED = Map.of(
            "smollm2-135m-instruct", "SmolLM2-135M-Instruct",
            "gemma-3-270m", "gemma-3-270m",
            "qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b",
            "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-0.5b",
            "qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b",
            "qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-1.5b");

    private Calibrations() {}

    /** Where a model's own is kept. */
    public static Path beside(Path model) {
        return model.resolveSibling(model.getFileName() + SUFFIX);
    }

    /**
     * The calibration of a model: the file beside it, else the one that comes with kvmerge for a model of this file
     * name, whatever its quantisation and the case of its letters ("SmolLM2-135M-Instruct" for
     * "smollm2-135m-instruct.Q4_1.gguf"), else null.
     */
    public static Calibration of(Path model) {
        Path own = beside(model);
        if (Files.exists(own)) {
            return read(own);
        }
        String stem = model.getFileName().toString().replaceFirst("(?i)\\.gguf$", "");
        String name = QUANTISATION.matcher(stem).replaceFirst("").toLowerCase(Locale.ROOT);
        return SHIPPED.containsKey(name) ? shipped(SHIPPED.get(name)) : null;
    }

    private static Calibration shipped(String name) {
        try (InputStream in = Calibrations.class.getResourceAsStream("calibrations/" + name + ".json")) {
            return CalibrationText.parse(new String(in.readAllBytes(), StandardCharsets.UTF_8));
        } catch (IOException | CalibrationText.Malformed e) {
            throw new IllegalStateException("the calibration of " + name + " in the jar is broken", e);
        }
    }

    /**
     * Reads a calibration.
     *
     * @throws KvmergeException if there is none, or it is not whole
     */
    public static Calibration read(Path file) {
        try {
            return CalibrationText.parse(Files.readString(file));
        } catch (KvmergeException e) {
            throw new KvmergeException(file + ": " + e.getMessage(), e);
        } catch (CalibrationText.Malformed e) {
            throw broken(file, e.getMessage(), e);
        } catch (CharacterCodingException e) {
            throw broken(file, "it is no text in UTF-8", e);
        } catch (IOException e) {
            throw new KvmergeException("cannot read the calibration " + file + ": " + e, e);
        }
    }

    private static KvmergeException broken(Path file, String what, Exception cause) {
        return new KvmergeException(
                "the calibration " + file + " is broken (" + what
                        + "): make it again with 'kvmerge calibrate', or use --calibration none",
                cause);
    }

    /** Writes a calibration, whole or not at all. */
    public static void write(Calibration calibration, Path file) {
        StringBuilder text = new StringBuilder();
        try {
            text.append("{\"name\":").append(quoted(calibration.name()));
            text.append(",\"layers\":").append(calibration.layers());
            text.append(",\"kvHeads\":").append(calibration.kvHeads());
            text.append(",\"keyDimension\":").append(calibration.keyDimension());
            text.append(",\"decay\":").append(calibration.decay());
            text.append(",\"massPower\":").append(calibration.massPower()).append(",\n\"weights\":[");
            String next = "\n[";
            for (float[] head : calibration.weights()) {
                text.append(next);
                for (int i = 0; i < head.length; i++) {
                    text.append(i == 0 ? "" : ",").append(shortest(head[i]));
                }
                text.append(']');
                next = ",\n[";
            }
            text.append("]}\n");
            Path part = file.resolveSibling(file.getFileName() + ".part");
            try {
                Files.writeString(part, text);
                Files.move(part, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            } finally {
                Files.deleteIfExists(part); // only after a failure is it there
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot write the calibration " + file + ": " + e, e);
        }
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c < ' ' || c == '"' || c == '\\') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }

    private static String shortest(float x) {
        return new BigDecimal(x)
                .round(new MathContext(DIGITS))
                .stripTrailingZeros()
                .toString();
    }
}
