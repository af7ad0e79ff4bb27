package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Text;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import java.util.Arrays;
import picocli.CommandLine.Option;

/** What every command that reads a text takes. */
final class TextOptions {
    @Option(
            names = {"-f", "--file"},
            paramLabel = "TEXT",
            defaultValue = "alice",
            description = "a UTF-8 text file, or a name from 'kvmerge models' (default: ${DEFAULT-VALUE})")
    String file;

    Text read(Catalogue catalogue) {
        return Text.read(catalogue.resolve(file, Catalogue.Kind.TEXT));
    }

    /**
     * Refuses, before a model is loaded, an option that wants more tokens than the text can have: none is shorter than
     * a byte.
     *
     * @param wanted tokens; 0 and less for no wish
     */
    static void holds(Text text, String option, long wanted) {
        long most = text.bytes() + 2; // BOS, and a space that some tokenizers put in front
        if (wanted > most) {
            throw new KvmergeException.Usage("the text " + text.path() + " has at most " + most + " tokens, and "
                    + option + " needs at least " + wanted + ": use a longer text or a smaller " + option);
        }
    }

    /**
     * A part of the text's tokens, with BOS as its first token where the model wants one.
     *
     * @param wanted tokens, or 0 for all
     */
    static int[] part(Model model, Text text, int offset, int wanted) {
        int[] all = Text.tokens(model, text.content());
        if (offset < 0 || wanted < 0) {
            throw new KvmergeException.Usage("--offset and --tokens must not be negative: " + offset + ", " + wanted);
        }
        int n = wanted == 0 ? all.length - offset : wanted;
        if (n < 2 || (long) offset + n > all.length) {
            throw new KvmergeException.Usage("the text " + text.path() + " has " + all.length + " tokens, not " + n
                    + " from token " + offset + " on: use a longer text, or a smaller --tokens or --offset");
        }
        return piece(model, all, offset, n);
    }

    /** As above, and warns of a text that goes past the trained context. */
    static int[] slice(Model model, Text text, int offset, int wanted) {
        int[] tokens = part(model, text, offset, wanted);
        if (tokens.length > model.trainedContext()) {
            System.err.printf(
                    java.util.Locale.ROOT,
                    "kvmerge: %,d tokens go past the %,d positions the model was trained on: perplexity gets worse "
                            + "there by itself%n",
                    tokens.length,
                    model.trainedContext());
        }
        return tokens;
    }

    /** Some of a text's tokens, with BOS as the first where the model wants one. */
    static int[] piece(Model model, int[] all, int from, int n) {
        int[] piece = Arrays.copyOfRange(all, from, from + n);
        if (model.addsBos()) {
            piece[0] = model.bos();
        }
        return piece;
    }
}
