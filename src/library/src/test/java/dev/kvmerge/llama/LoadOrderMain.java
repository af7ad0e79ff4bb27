package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.Kvmerge;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.kernels.Scorer;
import java.nio.file.Path;

/**
 * Loads libraries as its arguments say, one after the other, and prints what came of each. LoadOrderTest runs it in
 * JVMs of their own.
 */
final class LoadOrderMain {
    private static LlamaLibrary llama;

    private LoadOrderMain() {}

    public static void main(String[] steps) {
        for (String step : steps) {
            String[] word = step.split("=", 2);
            try {
                run(word[0], word.length > 1 ? Path.of(word[1]) : null);
                System.out.println("ok " + word[0]);
            } catch (KvmergeException e) {
                System.out.println("refused " + word[0] + ": " + e.getMessage());
            }
        }
    }

    private static void run(String step, Path path) {
        switch (step) {
            case "kvmerge" -> Kvmerge.load(path);
            case "llama" -> llama = path == null ? LlamaLibrary.load() : LlamaLibrary.load(path, false);
            case "version" -> Kvmerge.version();
            case "score" -> Scorer.rowEntropy(new float[][] {{0.5f, 0.5f}});
            case "observer" ->
                new Observer(Shape.of(1, 1, 1), 256, 1, Observer.Options.of(true, false, Bias.NONE, 1)).close();
            case "model" -> {
                ContextOptions options =
                        ContextOptions.of(256, 1, ComputeSettings.usual().withThreads(1));
                try (Model model = Model.load(llama, path, Backend.CPU, 0);
                        Context context = new Context(model, options, null)) {
                    context.decode(new int[] {1}, 0);
                }
            }
            default -> throw new IllegalArgumentException(step);
        }
    }
}
