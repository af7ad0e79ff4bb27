package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Sampling;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import picocli.CommandLine.Option;

/** How a text is generated, under llama-cli's names and with its defaults. */
final class SamplingOptions {
    @Option(
            names = {"-n", "--predict"},
            paramLabel = "N",
            defaultValue = "-1",
            description = "most tokens to generate; -1 for as many as the model likes (default: ${DEFAULT-VALUE})")
    int predict;

    @Option(
            names = "--temp",
            paramLabel = "T",
            defaultValue = "0.8",
            description = "temperature; 0 for the likeliest token, always (default: ${DEFAULT-VALUE})")
    float temperature;

    @Option(
            names = "--top-k",
            paramLabel = "N",
            defaultValue = "40",
            description = "only the likeliest N tokens; 0 for all (default: ${DEFAULT-VALUE})")
    int topK;

    @Option(
            names = "--top-p",
            paramLabel = "P",
            defaultValue = "0.95",
            description = "only the likeliest that have this probability together (default: ${DEFAULT-VALUE})")
    float topP;

    @Option(
            names = "--min-p",
            paramLabel = "P",
            defaultValue = "0.05",
            description = "only those with this share of the likeliest one's probability (default: ${DEFAULT-VALUE})")
    float minP;

    @Option(
            names = "--typical",
            paramLabel = "P",
            defaultValue = "1",
            description = "locally typical sampling; 1 for none (default: ${DEFAULT-VALUE})")
    float typicalP;

    @Option(
            names = {"-s", "--seed"},
            paramLabel = "N",
            defaultValue = "-1",
            description = "the same seed draws the same; -1 for another each time (default: ${DEFAULT-VALUE})")
    long seed;

    @Option(
            names = "--repeat-penalty",
            paramLabel = "X",
            defaultValue = "1",
            description = "logits of tokens that occurred lately are divided by it; 1 for none (default:"
                    + " ${DEFAULT-VALUE})")
    float repeatPenalty;

    @Option(
            names = "--repeat-last-n",
            paramLabel = "N",
            defaultValue = "64",
            description = "newest tokens that the penalties look at (default: ${DEFAULT-VALUE})")
    int repeatLastN;

    @Option(
            names = "--presence-penalty",
            paramLabel = "X",
            defaultValue = "0",
            description = "taken from the logit of a token that occurred lately (default: ${DEFAULT-VALUE})")
    float presencePenalty;

    @Option(
            names = "--frequency-penalty",
            paramLabel = "X",
            defaultValue = "0",
            description = "taken from it for each time that it occurred (default: ${DEFAULT-VALUE})")
    float frequencyPenalty;

    @Option(names = "--grammar", paramLabel = "GBNF", description = "a grammar that the text must obey")
    String grammar;

    @Option(names = "--grammar-file", paramLabel = "FILE", description = "the same, from a file")
    Path grammarFile;

    @Option(
            names = {"-l", "--logit-bias"},
            paramLabel = "TOKEN(+|-)X",
            description = "added to a token's logit, as 15043+1; -inf forbids it. May be given again")
    List<String> biases = new ArrayList<>();

    @Option(
            names = {"-r", "--reverse-prompt"},
            paramLabel = "TEXT",
            description = "ends the text before it. May be given again")
    List<String> stop = new ArrayList<>();

    @Option(names = "--ignore-eos", description = "go on where the model would end the text")
    boolean ignoreEos;

    /**
     * How to generate.
     *
     * @throws KvmergeException.Usage if an option cannot be
     */
    GenerateOptions options() {
        if (predict < -1) {
            throw new KvmergeException.Usage("-n must be -1 and more, not " + predict);
        }
        Sampling sampling = Sampling.usual()
                .withTemperature(temperature)
                .withTopK(topK)
                .withTopP(topP)
                .withMinP(minP)
                .withTypicalP(typicalP)
                .withPenalties(repeatPenalty, repeatLastN, presencePenalty, frequencyPenalty)
                .withSeed(seed)
                .withGrammar(grammar())
                .withLogitBias(logitBias());
        return GenerateOptions.usual()
                .withMaxTokens(predict < 0 ? Integer.MAX_VALUE : predict)
                .withSampling(sampling)
                .withStop(stop)
                .withIgnoreEos(ignoreEos);
    }

    private String grammar() {
        if (grammar != null && grammarFile != null) {
            throw new KvmergeException.Usage("--grammar and --grammar-file are two grammars: give one of them");
        }
        return grammarFile != null ? text("--grammar-file", grammarFile) : grammar == null ? "" : grammar;
    }

    private Map<Integer, Float> logitBias() {
        Map<Integer, Float> all = new HashMap<>();
        for (String bias : biases) {
            int sign = Math.max(bias.indexOf('+', 1), bias.indexOf('-', 1));
            try {
                if (sign < 0) {
                    throw new NumberFormatException();
                }
                String value = bias.substring(sign).replaceFirst("(?i)inf$", "Infinity");
                all.put(Integer.parseInt(bias.substring(0, sign)), Float.parseFloat(value));
            } catch (NumberFormatException e) {
                throw new KvmergeException.Usage(
                        "--logit-bias is a token's number and what is added, as 15043+1 or 2-inf, not '" + bias + "'");
            }
        }
        return all;
    }

    /** A text that may be given as such or in a file; null where neither is. */
    static String either(String option, String text, String other, Path file) {
        if (text != null && file != null) {
            throw new KvmergeException.Usage("give one of " + option + " and " + other + ", not both");
        }
        return file == null ? text : text(other, file);
    }

    /** A file's text. */
    static String text(String option, Path file) {
        try {
            return Files.readString(file);
        } catch (IOException e) {
            throw new KvmergeException.Usage(
                    option + " " + file + " cannot be read as UTF-8 text (" + e + "): give another file");
        }
    }
}
