package dev.kvmerge.engine;

import dev.kvmerge.Hash;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.Model;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.StreamCorruptedException;
import java.io.UncheckedIOException;
import java.nio.channels.Channels;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.DigestInputStream;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.Map;
import java.util.UUID;

/**
 * A session as a file: what it is of, then all but the cells, then the context's own state, then the SHA-256 of it all.
 * It is looked at whole before anything is taken from it.
 */
final class SessionFile {
    private static final byte[] MAGIC = {'K', 'V', 'M', 'S', 'E', 'S', 'S', '\n'};
    private static final int VERSION = 2;
    private static final int DIGEST = 32;
    private static final int FINGERPRINT = 1 << 20; // bytes of the model's file: its header, which tells models apart

    private SessionFile() {}

    static void write(Path file, Engine engine, Session session) {
        Path folder = file.toAbsolutePath().getParent();
        if (folder == null || !Files.isDirectory(folder)) {
            throw new KvmergeException("cannot save the session to " + file + ": there is no folder " + folder);
        }
        if (Files.isDirectory(file)) {
            throw new KvmergeException("cannot save the session to " + file + ": that is a folder");
        }
        Path part = file.resolveSibling(file.getFileName() + "." + UUID.randomUUID() + ".part"); // others may save
        try {
            try {
                MessageDigest digest = sha256();
                try (OutputStream to = Files.newOutputStream(part, StandardOpenOption.CREATE_NEW);
                        DigestOutputStream all = new DigestOutputStream(new BufferedOutputStream(to), digest);
                        DataOutputStream out = new DataOutputStream(all)) {
                    out.write(MAGIC);
                    out.writeInt(VERSION);
                    writeText(out, fingerprint(engine.model()));
                    writeText(out, description(engine));
                    write(out, session.saved());
                    if (session.history().decoded() > 0) {
                        onScheduler(engine, () -> session.sequence().context().saveState(Channels.newChannel(out)));
                    }
                    out.flush();
                    all.on(false);
                    out.write(digest.digest());
                }
                Files.move(part, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            } finally {
                Files.deleteIfExists(part); // only after a failure is it there
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot save the session to " + file + ": " + e, e);
        }
    }

    private interface Transfer {
        void run() throws IOException;
    }

    private static void onScheduler(Engine engine, Transfer transfer) throws IOException {
        try {
            engine.scheduler().call(() -> {
                try {
                    transfer.run();
                    return true;
                } catch (IOException e) {
                    throw new UncheckedIOException(e);
                }
            });
        } catch (UncheckedIOException e) {
            throw e.getCause();
        }
    }

    /**
     * Gives a session what a file has of another, in place of what it has.
     *
     * @throws KvmergeException if it is none, or another engine's; nothing changes then
     */
    static void read(Path file, Engine engine, Session session) {
        try {
            checkWhole(file);
            try (DataInputStream in = new DataInputStream(new BufferedInputStream(Files.newInputStream(file)))) {
                in.skipNBytes(MAGIC.length + Integer.BYTES);
                take(file, engine, session, in, Files.size(file) - MAGIC.length - Integer.BYTES - DIGEST);
            }
        } catch (StreamCorruptedException | EOFException e) {
            throw damaged(file);
        } catch (NoSuchFileException e) {
            throw new KvmergeException("there is no saved session " + file, e);
        } catch (IOException e) {
            throw new KvmergeException("cannot read the saved session " + file + ": " + e, e);
        }
    }

    private static void take(Path file, Engine engine, Session session, DataInputStream in, long bytes)
            throws IOException {
        SavedReader reader = new SavedReader(in, bytes);
        if (!reader.text().equals(fingerprint(engine.model()))) {
            throw new KvmergeException("the saved session " + file + " is of another model than "
                    + engine.model().path() + ": load the one that it was saved with");
        }
        String saved = reader.text();
        String wanted = description(engine);
        if (!saved.equals(wanted)) {
            throw new KvmergeException("the saved session " + file + " was made with other options (" + saved
                    + ") than these (" + wanted + "): give the same ones");
        }
        Saved rest = reader.saved(engine.model().vocabularySize());
        Drawing drawing = drawing(file, engine.model(), rest);
        try {
            onScheduler(engine, () -> {
                if (rest.decoded() > 0) {
                    session.sequence().context().restoreState(Channels.newChannel(in));
                } else {
                    session.sequence().clear();
                }
            });
        } catch (IOException | RuntimeException | Error e) {
            if (drawing != null) {
                drawing.close();
            }
            throw e;
        }
        session.takeOver(rest, drawing);
    }

    /** Made before anything changes: a damaged one cannot be. */
    private static Drawing drawing(Path file, Model model, Saved saved) {
        try {
            return Drawing.of(model, saved);
        } catch (KvmergeException | IllegalArgumentException e) {
            throw damaged(file);
        }
    }

    private static void checkWhole(Path file) throws IOException {
        long size = Files.size(file);
        MessageDigest digest = sha256();
        try (InputStream from = new BufferedInputStream(Files.newInputStream(file));
                DigestInputStream all = new DigestInputStream(from, digest)) {
            DataInputStream in = new DataInputStream(all);
            byte[] magic = in.readNBytes(MAGIC.length);
            if (!Arrays.equals(magic, MAGIC)) {
                throw new KvmergeException("the file " + file + " is no saved session of kvmerge");
            }
            if (size < MAGIC.length + Integer.BYTES + DIGEST) {
                throw damaged(file);
            }
            int version = in.readInt();
            if (version != VERSION) {
                throw new KvmergeException("the saved session " + file + " has format " + version
                        + ", and this kvmerge reads format " + VERSION + ": read it with the version that wrote it");
            }
            byte[] buffer = new byte[1 << 16];
            for (long left = size - MAGIC.length - Integer.BYTES - DIGEST; left > 0; ) {
                int n = in.read(buffer, 0, (int) Math.min(buffer.length, left));
                if (n < 0) {
                    throw damaged(file);
                }
                left -= n;
            }
            all.on(false);
            if (!Arrays.equals(digest.digest(), in.readNBytes(DIGEST))) {
                throw damaged(file);
            }
        } catch (EOFException e) {
            throw damaged(file);
        }
    }

    private static KvmergeException damaged(Path file) {
        return new KvmergeException("the saved session " + file + " is truncated or damaged: save it again");
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every JDK has SHA-256", e);
        }
    }

    private static String fingerprint(Model model) throws IOException {
        try (InputStream in = Files.newInputStream(model.path())) {
            return Hash.sha256(in.readNBytes(FINGERPRINT)) + " of " + Files.size(model.path()) + " bytes";
        }
    }

    private static String description(Engine engine) {
        ComputeSettings compute = engine.options().compute();
        return "cells " + engine.cache().cells() + ", block "
                + engine.cache().block() + ", position range "
                + engine.cache().positionRange() + ", strategy "
                + engine.strategy() + ", K cells " + compute.keyType() + ", V cells " + compute.valueType()
                + ", flash attention " + compute.flashAttention();
    }

    private static void write(DataOutputStream out, Saved saved) throws IOException {
        writeInts(out, saved.tokens());
        out.writeInt(saved.decoded());
        writeBytes(out, saved.generated().toByteArray());
        writeBytes(out, saved.rest());
        out.writeInt(saved.logits().length);
        for (float logit : saved.logits()) {
            out.writeFloat(logit);
        }
        out.writeInt(saved.pinned().tokens());
        out.writeBoolean(saved.pinned().state() != null);
        if (saved.pinned().state() != null) {
            writeBytes(out, saved.pinned().state());
        }
        out.writeInt(saved.messages().size());
        for (ChatMessage message : saved.messages()) {
            writeText(out, message.role());
            writeText(out, message.content());
        }
        out.writeBoolean(saved.drawing() != null);
        if (saved.drawing() != null) {
            write(out, saved.drawing());
        }
        out.flush();
    }

    private static void write(DataOutputStream out, Drawing.State state) throws IOException {
        Sampling s = state.sampling();
        for (float f : new float[] {
            s.temperature(),
            s.topP(),
            s.minP(),
            s.typicalP(),
            s.repeatPenalty(),
            s.presencePenalty(),
            s.frequencyPenalty()
        }) {
            out.writeFloat(f);
        }
        out.writeInt(s.topK());
        out.writeInt(s.repeatLastN());
        out.writeLong(s.seed());
        writeText(out, s.grammar());
        out.writeInt(s.logitBias().size());
        for (Map.Entry<Integer, Float> bias : s.logitBias().entrySet()) {
            out.writeInt(bias.getKey());
            out.writeFloat(bias.getValue());
        }
        out.writeBoolean(state.ignoreEos());
        out.writeInt(state.seed());
        out.writeLong(state.drawn());
        out.writeInt(state.chosen());
    }

    private static void writeText(DataOutputStream out, String text) throws IOException {
        writeBytes(out, text.getBytes(StandardCharsets.UTF_8));
    }

    private static void writeBytes(DataOutputStream out, byte[] bytes) throws IOException {
        out.writeInt(bytes.length);
        out.write(bytes);
    }

    private static void writeInts(DataOutputStream out, int[] numbers) throws IOException {
        out.writeInt(numbers.length);
        for (int number : numbers) {
            out.writeInt(number);
        }
    }
}
