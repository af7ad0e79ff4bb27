import dev.kvmerge.attention.Calibrations;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.cache.CompressedContext;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.LlamaLibrary;
import dev.kvmerge.llama.Model;
import dev.kvmerge.strategy.EntropyMerged;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.IntStream;

/** Reads a text of any length with 448 + 64 cells, and goes on writing. */
final class Bounded {
    public static void main(String[] args) throws IOException {
        try (Model model = Model.load(LlamaLibrary.load(), Path.of(args[0]), Backend.CPU, 0);
                CompressedContext context = new CompressedContext(
                        model, new EntropyMerged(Calibrations.of(model.path())), CacheOptions.of(448, 64))) {
            int[] text = model.tokenize(Files.readString(Path.of(args[1])));
            for (int at = 0; at < text.length; at += 64) {
                context.decode(Arrays.copyOfRange(text, at, Math.min(text.length, at + 64)), false);
            }
            System.err.println("read " + text.length + " tokens with " + (448 + 64) + " cells");
            for (int i = 0; i < 24; i++) {
                int next = likeliest(context, model.vocabularySize());
                System.out.writeBytes(model.piece(next));
                context.decode(new int[] {next});
            }
            System.out.println();
        }
    }

    private static int likeliest(CompressedContext context, int vocabulary) {
        float[] logits = context.logits().asSlice(0, 4L * vocabulary).toArray(ValueLayout.JAVA_FLOAT);
        return IntStream.range(0, vocabulary)
                .reduce((a, b) -> logits[b] > logits[a] ? b : a)
                .orElseThrow();
    }
}
