package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.attention.Calibrations;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.ChatTemplate;
import dev.kvmerge.eval.Calibrator;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.Text;
import dev.kvmerge.eval.ToldChat;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Learns what a model's heads attend to later. */
@Command(
        name = "calibrate",
        mixinStandardHelpOptions = true,
        description = {
            "Reads texts through the full cache and learns, for each layer and KV head, to foresee the attention that "
                    + "a token will get.",
            "entropy-merged uses what lies beside the model from then on. Measure on other texts than these."
        },
        footer = {"", "Example:", "  kvmerge calibrate -m my-model.gguf -f moby-dick,technical-report --pieces 4"})
final class CalibrateCommand implements Runnable {
    private static final int MOST_CONVERSATIONS = 32; // what was seen of each stays in memory: 30 MB

    @Mixin
    private ModelOptions model;

    @Option(
            names = {"-f", "--file"},
            split = ",",
            paramLabel = "TEXT",
            defaultValue = "moby-dick,state-of-the-union,technical-report,as-you-like-it",
            description = "UTF-8 text files, or names from 'kvmerge models' (default: ${DEFAULT-VALUE})")
    private List<String> files;

    @Option(
            names = "--pieces",
            paramLabel = "N",
            defaultValue = "2",
            description = "pieces of each text to read, evenly apart (default: ${DEFAULT-VALUE})")
    private int pieces;

    @Option(
            names = "--conversations",
            paramLabel = "N",
            description = "conversations to read besides, as long as a piece: by turns, things are told between"
                    + " sentences of a text, or in one long text, and asked for at the end (default: as many as"
                    + " pieces, " + MOST_CONVERSATIONS + " at most; none where the model or the texts allow none)")
    private Integer conversations;

    @Option(names = "--windows", hidden = true)
    private void windows(int n) {
        Renamed.warn("--windows", "--pieces");
        pieces = n;
    }

    @Option(
            names = "--tokens",
            paramLabel = "N",
            defaultValue = "4096",
            description = "tokens a piece, " + Calibrator.FEWEST_TOKENS + " at least (default: ${DEFAULT-VALUE})")
    private int tokens;

    @Option(
            names = "--out",
            paramLabel = "FILE",
            description = "where it goes (default: beside the model, as MODEL" + Calibrations.SUFFIX + ")")
    private Path out;

    @Spec
    private CommandSpec command;

    @Override
    public void run() {
        Least.of("--pieces", pieces, 1);
        Least.of("--tokens", tokens, Calibrator.FEWEST_TOKENS);
        if (conversations != null) {
            Least.of("--conversations", conversations, 0);
            if (conversations > MOST_CONVERSATIONS) {
                throw new KvmergeException.Usage(
                        "--conversations can be " + MOST_CONVERSATIONS + " at most, not " + conversations);
            }
        }
        ComputeSettings compute = model.compute(FlashAttention.ON);
        if (model.ubatch < Calibrator.FEWEST_UBATCH) {
            throw new KvmergeException.Usage(
                    "-ub must be " + Calibrator.FEWEST_UBATCH + " or more: a calibration is of whole blocks");
        }
        StrategyOptions.refuse(command, List.of("--observe-queries"), "is for strategies, a calibration looks at half");
        model.checkCells(compute, Bias.NONE);
        Catalogue catalogue = Home.catalogue();
        List<Text> texts = new ArrayList<>();
        for (String file : files) {
            Text read = Text.read(catalogue.resolve(file, Catalogue.Kind.TEXT));
            TextOptions.holds(read, "--pieces times --tokens", (long) pieces * tokens);
            texts.add(read);
        }
        Path to = out == null ? Calibrations.beside(catalogue.resolve(model.model, Catalogue.Kind.MODEL)) : out;
        Path folder = to.toAbsolutePath().getParent();
        if (!Files.isWritable(folder)) {
            throw new KvmergeException.Usage("cannot write into " + folder + ": choose another --out");
        }
        Interrupt.listen("kvmerge: stopping at the end of this block; nothing is written");
        try (Model loaded = model.load(catalogue);
                Progress progress = new Progress("calibrating")) {
            List<int[]> pieces = new ArrayList<>();
            for (Text text : texts) {
                pieces.addAll(pieces(loaded, text));
            }
            String name = String.join(", ", files) + ": " + pieces.size() + " x " + tokens + " tokens";
            List<int[]> told = told(loaded, texts, pieces.size());
            if (!told.isEmpty()) {
                pieces.addAll(told);
                name += "; conversations: " + told.size() + " x " + tokens + " tokens";
            }
            double total = (double) pieces.size() * tokens;
            Calibration calibration = new Calibrator(
                            loaded,
                            compute,
                            (at, perplexity, speed) -> progress.update(
                                    at / total,
                                    String.format(Locale.ROOT, "%,d of %,.0f tokens, %.0f tokens/s", at, total, speed)),
                            Interrupt::requested)
                    .fit(name, pieces);
            Calibrations.write(calibration, to);
        }
        System.out.println("Written to " + to + ".");
    }

    /** As many conversations as are asked for, else as many as pieces, or none where they cannot be made. */
    private List<int[]> told(Model loaded, List<Text> texts, int pieces) {
        int n = conversations != null ? conversations : Math.min(MOST_CONVERSATIONS, pieces);
        try {
            return conversations(loaded, texts, n);
        } catch (KvmergeException e) {
            if (conversations != null) {
                throw e;
            }
            System.err.println("kvmerge: calibrating on texts alone: " + e.getMessage());
            return List.of();
        }
    }

    /** One conversation after the other, with the texts and the two forms by turns. */
    private List<int[]> conversations(Model loaded, List<Text> texts, int n) {
        List<int[]> told = new ArrayList<>();
        ChatTemplate template = n == 0 ? null : ChatFormat.of(loaded);
        for (int i = 0; i < n; i++) {
            if (Interrupt.requested()) {
                throw new Experiment.Cancelled();
            }
            Text text = texts.get(i % texts.size());
            try {
                List<ChatMessage> messages = ToldChat.make(
                        form(i, texts.size()), text.content(), i, tokens, said -> template.render(said, false)
                                .tokens(loaded)
                                .length);
                told.add(Arrays.copyOf(template.render(messages, false).tokens(loaded), tokens));
            } catch (KvmergeException.Usage e) {
                String remedy = conversations == null ? "" : ": use other texts, more --tokens, or --conversations 0";
                throw new KvmergeException.Usage(
                        "no conversation with the text " + text.path() + ": " + e.getMessage() + remedy);
            }
        }
        return told;
    }

    /** With an even number of texts the forms change places each time round, so that each text has both. */
    private static ToldChat.Form form(int i, int texts) {
        int round = texts % 2 == 0 ? i / texts : 0;
        return (i + round) % 2 == 0 ? ToldChat.Form.TALK : ToldChat.Form.TEXT;
    }

    /** Pieces evenly apart, none at the very start, where titles and contents are. */
    private List<int[]> pieces(Model loaded, Text text) {
        int[] all = Text.tokens(loaded, text.content());
        if ((long) pieces * tokens > all.length) {
            throw new KvmergeException.Usage("the text " + text.path() + " has " + all.length + " tokens, not " + pieces
                    + " x " + tokens + ": use a longer text, or a smaller --pieces or --tokens");
        }
        List<int[]> cut = new ArrayList<>();
        for (int i = 0; i < pieces; i++) {
            int from = (int) ((i + 1L) * (all.length - tokens) / (pieces + 1));
            cut.add(TextOptions.piece(loaded, all, from, tokens));
        }
        return cut;
    }
}
