package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.file.Path;

/**
 * Loads, one after the other, the models whose paths it reads, and uses what can be loaded: GgufFuzzTest's other
 * process.
 */
final class GgufFuzzMain {
    /** What its own lines begin with. */
    static final String ANSWER = "= ";

    private GgufFuzzMain() {}

    public static void main(String[] arguments) throws IOException {
        LlamaLibrary library = TestModel.library();
        System.out.println(ANSWER + "ready");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String path; (path = in.readLine()) != null; ) {
            System.out.println(ANSWER + outcome(library, Path.of(path)));
        }
    }

    private static String outcome(LlamaLibrary library, Path path) {
        try (Model model = Model.load(library, path, Backend.CPU, 0)) {
            use(model);
            return "used";
        } catch (KvmergeException e) {
            return "refused " + e.getMessage().replaceAll("\\s+", " ");
        } catch (RuntimeException e) {
            return "thrown " + e;
        }
    }

    private static void use(Model model) {
        ContextOptions options =
                ContextOptions.of(256, 8, ComputeSettings.usual().withThreads(1));
        try (Context context = new Context(model, options, null)) {
            context.decode(new int[] {3, 5, 7}, 0);
            context.decode(new int[] {4}, 3);
            context.logits();
        }
        model.description();
        model.metadata("general.architecture");
        try {
            model.tokenize("a text, and <s>\u00e9\u4e66");
            model.addsBos();
            model.bos();
        } catch (KvmergeException e) {
            return; // no vocabulary
        }
        for (int token = 0; token < model.vocabularySize(); token++) {
            model.piece(token);
            model.endsGeneration(token);
        }
    }
}
