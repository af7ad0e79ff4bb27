package dev.kvmerge.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.GgufPatch;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.TestModel;
import dev.kvmerge.TinyGguf;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.kernels.CellVectors;
import dev.kvmerge.kernels.Observer;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Calls at the wrong time or from the wrong thread are refused, and constructors that fail leave nothing behind. */
@Tag("native")
class HandleTest {
    private static final TinyGguf.Geometry TINY = new TinyGguf.Geometry("llama", 4, 2, 16, 10000, "none", 16, false);
    private static final ContextOptions OPTIONS =
            ContextOptions.of(256, 32, ComputeSettings.usual().withThreads(1));

    @TempDir
    Path folder;

    private Model model;

    @BeforeEach
    void load() {
        Path tiny = TinyGguf.write(folder.resolve("tiny.gguf"), TINY);
        Path words = GgufPatch.of(tiny).withVocabulary(8).write(folder.resolve("words.gguf"));
        model = Model.load(TestModel.library(), words, Backend.CPU, 0);
    }

    @AfterEach
    void close() {
        model.close(); // fails if a context was leaked
    }

    private static String refused(Runnable call) {
        return assertThrows(IllegalStateException.class, call::run).getMessage();
    }

    private Observer observer() {
        return new Observer(model.shape(), 256, 32, Observer.Options.of(true, true, Bias.NONE, 1));
    }

    @Test
    void everyCallOfAClosedSamplerIsRefused() {
        Sampler sampler = new Sampler(model).topK(3).likeliest();
        sampler.close();
        sampler.close();
        List.<Runnable>of(
                        () -> sampler.bias(Map.of(3, 1f)),
                        sampler::withoutEnd,
                        () -> sampler.penalties(5, 2, 0, 0),
                        () -> sampler.topK(3),
                        () -> sampler.typical(.5f),
                        () -> sampler.topP(.5f),
                        () -> sampler.minP(.5f),
                        () -> sampler.temperature(2),
                        sampler::likeliest,
                        () -> sampler.draw(1, 2),
                        () -> sampler.grammar("root ::= \"a\""),
                        () -> sampler.sample(MemorySegment.NULL),
                        () -> sampler.accept(1),
                        () -> sampler.acceptPrompt(1))
                .forEach(call -> assertEquals("the sampler is closed", refused(call)));
    }

    @Test
    void everyCallOfAClosedObjectIsRefused() {
        Observer observer = observer();
        Context context = new Context(model, OPTIONS, observer.callback());
        observer.begin();
        context.decode(new int[] {5, 6}, 0);
        Observer.CacheInfo info = observer.cacheInfo();
        MemorySegment logits = context.logits();
        assertTrue(refused(observer::close).contains("context is still open"));
        assertTrue(refused(model::close).contains("1 open contexts"));
        assertEquals(4, model.tokenize("ab").length, "BOS, space, a, b: the model stayed open");
        context.close();
        context.close();
        List.<Runnable>of(
                        () -> context.decode(new int[] {1}, 2),
                        context::logits,
                        () -> context.removePositions(0, 1),
                        () -> context.movePositions(1, 2, -1),
                        context::canMovePositions,
                        context::newestPosition,
                        context::clear)
                .forEach(call -> assertEquals("the context is closed", refused(call)));
        refused(() -> logits.get(ValueLayout.JAVA_FLOAT, 0));
        observer.close();
        observer.close();
        int[] cell = {0};
        CellVectors vectors = CellVectors.of(1, new float[info.keyDimension()], new float[info.valueDimension()]);
        List.<Runnable>of(
                        observer::callback,
                        observer::begin,
                        observer::stats,
                        observer::cacheInfo,
                        () -> observer.queryMoments(0, 0, info),
                        () -> observer.queryHeads(0, 0, 1, info),
                        () -> observer.keyRotation(0, info),
                        () -> observer.cells(0, 0, cell, info, CellVectors.Buffer::new)
                                .keys(),
                        () -> observer.cells(0, 0, cell, info, CellVectors.Buffer::new)
                                .groups(new double[1], 0, 1, 0, 1, 1),
                        () -> observer.readCells(0, 0, cell, info, new CellVectors.Buffer()),
                        () -> observer.project(0, 0, cell, cell, new float[info.keyDimension()], info),
                        () -> observer.writeValues(0, 0, cell, new float[info.valueDimension()], info),
                        () -> observer.writeCells(0, 0, cell, vectors, info),
                        () -> {
                            int n = model.shape().pairs() * 256;
                            observer.apply(new int[n], new float[n], null, new int[n], new int[n], null, true);
                        })
                .forEach(call -> assertEquals("the observer is closed", refused(call)));
        Model closed = model;
        closed.close();
        closed.close();
        List.<Runnable>of(
                        () -> closed.tokenize("a"),
                        () -> closed.piece(1),
                        closed::bos,
                        closed::eos,
                        closed::eot,
                        () -> closed.isSpecial(1),
                        closed::addsBos,
                        () -> closed.endsGeneration(1),
                        () -> closed.metadata("general.name"),
                        closed::description,
                        closed::bytes,
                        closed::parameters,
                        closed::trainedContext,
                        () -> new Context(closed, OPTIONS, null))
                .forEach(call -> assertEquals("the model is closed", refused(call)));
    }

    /** Stops inside llama_decode, at the first node of the graph. */
    private static final class Stop {
        final CountDownLatch reached = new CountDownLatch(1);
        final CountDownLatch goOn = new CountDownLatch(1);

        @SuppressWarnings("unused") // by its handle
        boolean node(MemorySegment at, boolean ask, MemorySegment userData) {
            reached.countDown();
            try {
                goOn.await();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            return !ask;
        }

        MemorySegment function(Arena arena) throws ReflectiveOperationException {
            return Linker.nativeLinker()
                    .upcallStub(
                            MethodHandles.lookup()
                                    .bind(
                                            this,
                                            "node",
                                            MethodType.methodType(
                                                    boolean.class,
                                                    MemorySegment.class,
                                                    boolean.class,
                                                    MemorySegment.class)),
                            FunctionDescriptor.of(
                                    ValueLayout.JAVA_BOOLEAN,
                                    ValueLayout.ADDRESS,
                                    ValueLayout.JAVA_BOOLEAN,
                                    ValueLayout.ADDRESS),
                            arena);
        }
    }

    @Test
    void whileAThreadDecodesNoOtherGetsIn() throws Exception {
        try (Arena arena = Arena.ofShared()) {
            Stop stop = new Stop();
            Guard observed = new Guard("the observer");
            Context context = new Context(
                    model,
                    OPTIONS,
                    new ContextOptions.EvalCallback(stop.function(arena), MemorySegment.NULL, observed));
            FutureTask<Void> decode = new FutureTask<>(() -> context.decode(new int[] {1, 2, 3}, 0), null);
            Thread.ofPlatform().name("decoder").start(decode);
            stop.reached.await();
            List.<Runnable>of(
                            context::close,
                            () -> context.decode(new int[] {1}, 3),
                            context::logits,
                            context::clear,
                            () -> context.removePositions(0, 1),
                            context::newestPosition)
                    .forEach(call -> assertEquals("the context is in use by thread decoder", refused(call)));
            assertEquals("the observer is in use by thread decoder", refused(observed::shared));
            assertTrue(refused(model::close).contains("open contexts"));
            stop.goOn.countDown();
            decode.get();
            assertEquals(3, context.logitRows(), "the decode went on as if nothing had been");
            context.close();
        }
    }

    @Test
    void aModelIsNotClosedUnderAThreadThatTokenizes() throws Exception {
        String text = "abcdefgh ".repeat(2000);
        CountDownLatch started = new CountDownLatch(1);
        FutureTask<Integer> tokenize = new FutureTask<>(() -> {
            int calls = 0;
            try {
                while (true) {
                    assertTrue(model.tokenize(text).length > 2000);
                    calls++;
                    started.countDown();
                }
            } catch (IllegalStateException e) {
                assertEquals("the model is closed", e.getMessage());
                return calls;
            }
        });
        new Thread(tokenize).start();
        started.await();
        boolean closed = false;
        while (!closed) {
            try {
                model.close();
                closed = true;
            } catch (IllegalStateException e) {
                assertEquals("the model is in use by another thread", e.getMessage());
            }
        }
        assertTrue(tokenize.get() > 0);
    }

    private static long residentMiB() throws IOException {
        return Files.readAllLines(Path.of("/proc/self/status")).stream()
                .filter(line -> line.startsWith("VmRSS:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) / 1024)
                .findFirst()
                .orElse(0);
    }

    /** 100 of each would leave 350 MiB and 800 MiB behind. */
    @Test
    void constructorsThatFailLeaveNothingBehind() throws IOException {
        ComputeSettings impossible = OPTIONS.compute()
                .withUbatch(32)
                .withCellTypes(ContextOptions.CellType.F16, ContextOptions.CellType.Q8_0);
        ContextOptions large = ContextOptions.of(1 << 17, 1 << 17, impossible);
        try (Observer observer = observer()) {
            for (int i = 0; i < 3; i++) {
                assertThrows(KvmergeException.class, () -> new Context(model, large, observer.callback()));
            }
            long before = residentMiB();
            for (int i = 0; i < 100; i++) {
                assertThrows(KvmergeException.class, () -> new Context(model, large, observer.callback()));
                assertThrows(
                        KvmergeException.class,
                        () -> new Observer(
                                model.shape(),
                                1 << 17,
                                32,
                                Observer.Options.of(true, true, Bias.NONE, 1).withMassPower(Double.NaN)));
            }
            long grown = residentMiB() - before;
            assertTrue(grown < 200, "grown by " + grown + " MiB");
        } // the observer can be freed: no context counts as its user
    }

    /** Its vectors may be longer than the memory made for those that it was told of. */
    @Test
    void whatIsSaidOfAnotherCacheIsRefused() {
        try (Observer observer = observer();
                Context context = new Context(model, OPTIONS, observer.callback())) {
            observer.begin();
            context.decode(new int[] {5, 6}, 0);
            Observer.CacheInfo own = observer.cacheInfo();
            Observer.CacheInfo other = new Observer.CacheInfo(
                    own.cells(),
                    1,
                    1,
                    own.valuesTransposed(),
                    own.bytes(),
                    own.keyType(),
                    own.valueType(),
                    own.device());
            int[] cell = {0};
            List.<Runnable>of(
                            () -> observer.readCells(0, 0, cell, other, new CellVectors.Buffer()),
                            () -> observer.queryMoments(0, 0, other),
                            () -> observer.queryHeads(0, 0, 1, other),
                            () -> observer.keyRotation(0, other),
                            () -> observer.project(0, 0, cell, cell, new float[1], other),
                            () -> observer.writeValues(0, 0, cell, new float[1], other),
                            () -> observer.writeCells(0, 0, cell, CellVectors.of(1, new float[1], new float[1]), other))
                    .forEach(call -> assertThrows(IllegalArgumentException.class, call::run));
            for (int[] wrong : new int[][] {{-1}, {256}, {Integer.MAX_VALUE}, new int[300]}) {
                assertThrows(
                        KvmergeException.class, () -> observer.readCells(0, 0, wrong, own, new CellVectors.Buffer()));
            }
            assertThrows(KvmergeException.class, () -> observer.readCells(7, 0, cell, own, new CellVectors.Buffer()));
            assertThrows(KvmergeException.class, () -> observer.readCells(0, -1, cell, own, new CellVectors.Buffer()));
        }
    }

    @Test
    void aPlanOfAnotherShapeIsRefusedBeforeAnythingIsCopied() {
        try (Observer observer = observer()) {
            assertThrows(
                    IllegalArgumentException.class,
                    () -> observer.apply(new int[1], new float[1], null, new int[1], new int[1], null, true));
        }
    }
}
