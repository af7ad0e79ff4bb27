package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.llama.Model;
import dev.kvmerge.llama.Shape;
import dev.kvmerge.strategy.Foreknowing;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.function.BooleanSupplier;

/**
 * What every token of a text will be attended to by the blocks to come, in a mapped file: of block b, [layer * kvHeads
 * + kvHead][position up to its end], the sum over all later blocks.
 */
final class AttentionRecord implements Foreknowing.Future, AutoCloseable {
    private static final int PIECE = 1 << 20; // bytes written at once

    private final Shape shape;
    private final int block;
    private final int tokens;
    private final Path file;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment future;

    /**
     * Makes the record by a run through the full cache.
     *
     * @throws Experiment.Cancelled if asked to stop
     */
    AttentionRecord(
            Model model,
            int[] text,
            CacheOptions options,
            Path file,
            Experiment.Listener listener,
            BooleanSupplier cancelled) {
        this.shape = model.shape();
        this.block = options.block();
        this.tokens = text.length;
        this.file = file;
        try (FileChannel channel = FileChannel.open(
                file,
                StandardOpenOption.CREATE,
                StandardOpenOption.TRUNCATE_EXISTING,
                StandardOpenOption.READ,
                StandardOpenOption.WRITE)) {
            reserve(channel, offset(blocks()));
            future = channel.map(FileChannel.MapMode.READ_WRITE, 0, offset(blocks()), arena);
            observe(model, text, options, listener, cancelled);
            sumFromTheEnd();
        } catch (IOException e) {
            close();
            throw new KvmergeException(
                    "cannot write the full cache's attention to " + file + " (" + offset(blocks()) + " bytes): "
                            + e.getMessage() + "; free space there, or choose another --out",
                    e);
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    /** Takes the space on the disk: writing to a mapped file where there is none is an InternalError. */
    private static void reserve(FileChannel channel, long bytes) throws IOException {
        ByteBuffer zeros = ByteBuffer.allocateDirect(PIECE);
        for (long at = 0; at < bytes; ) {
            at += channel.write(zeros.clear().limit((int) Math.min(PIECE, bytes - at)), at);
        }
    }

    private int blocks() {
        return Math.ceilDiv(tokens, block);
    }

    private int end(int b) {
        return Math.min(tokens, (b + 1) * block);
    }

    /** Bytes of the blocks before b. */
    private long offset(int b) {
        long positions = b == 0 ? 0 : (long) block * b * (b - 1) / 2 + end(b - 1); // all but the last are full
        return 4 * positions * shape.pairs();
    }

    private void observe(
            Model model, int[] text, CacheOptions options, Experiment.Listener listener, BooleanSupplier cancelled) {
        FullAttention.read(model, text, options, 1, 0, 0, listener, cancelled, (context, b, end, mass) -> {
            int cells = mass.length / shape.pairs();
            long at = offset(b);
            for (int pair = 0; pair < shape.pairs(); pair++) {
                MemorySegment.copy(mass, pair * cells, future, ValueLayout.JAVA_FLOAT, at, end);
                at += 4L * end;
            }
        });
    }

    /** From the mass of each block to that of all blocks after it. */
    private void sumFromTheEnd() {
        float[][] later = new float[shape.pairs()][tokens];
        for (int b = blocks() - 1; b >= 0; b--) {
            long at = offset(b);
            for (int pair = 0; pair < shape.pairs(); pair++) {
                for (int p = 0; p < end(b); p++, at += 4) {
                    float own = future.get(ValueLayout.JAVA_FLOAT_UNALIGNED, at);
                    future.set(ValueLayout.JAVA_FLOAT_UNALIGNED, at, later[pair][p]);
                    later[pair][p] += own;
                }
            }
        }
    }

    @Override
    public double mass(int layer, int kvHead, int position, int after) {
        int b = after / block;
        long pair = (long) layer * shape.kvHeads() + kvHead;
        return future.get(ValueLayout.JAVA_FLOAT_UNALIGNED, offset(b) + 4 * (pair * end(b) + position));
    }

    @Override
    public void close() {
        arena.close();
        try {
            Files.deleteIfExists(file);
        } catch (IOException e) {
            throw new KvmergeException("cannot delete " + file + ": " + e.getMessage(), e);
        }
    }
}
