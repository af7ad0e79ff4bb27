import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.EngineOptions;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Session;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Reads a text of any length with 448 + 64 cells, and goes on writing. */
final class Bounded {
    public static void main(String[] args) throws IOException {
        EngineOptions options = EngineOptions.usual().withCells(448).withBlock(64);
        try (Engine engine = Engine.load(Path.of(args[0]), options);
                Session session = engine.open()) {
            int read = session.read(Files.readString(Path.of(args[1])));
            System.err.println("read " + read + " tokens with " + (448 + 64) + " cells");
            session.generate("", GenerateOptions.greedy(24), System.out::print);
            System.out.println();
        }
    }
}
