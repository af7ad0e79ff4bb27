package dev.kvmerge.server;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.CellsUsage;
import dev.kvmerge.engine.CellsView.Fate;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Generation;
import dev.kvmerge.engine.Generation.Ended;
import dev.kvmerge.engine.TokenLogprob;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;

/**
 * An engine without a model. A token is a byte, 256 the end of a message. It answers with what stands after the last
 * "say:" of the prompt, a character at a time, or with letters without end. A Chinese character and those beyond are of
 * several tokens.
 */
final class FakeInference implements Inference {
    static final int END = 256;
    static final int CONTROL = 0xE001; // in an answer: a token that is no text
    static final String WITHOUT_TOKEN = "\uE000";

    /** Pieces of text that may come; a test may take all of them, and give some. */
    final Semaphore pace = new Semaphore(Integer.MAX_VALUE / 2);

    final AtomicInteger generating = new AtomicInteger();
    final AtomicInteger cancelled = new AtomicInteger();
    final List<Talk> talks = new ArrayList<>();
    final AtomicInteger pictures = new AtomicInteger(); // cells() was asked so often
    volatile Runnable beforeTokenize = () -> {};
    volatile Runnable beforeCells = () -> {};
    volatile Runnable beforeCancel = () -> {};
    volatile boolean breaks; // throws what nobody foresaw
    volatile boolean closed;

    @Override
    public Facts facts() {
        return new Facts("/models/fake.gguf", "fake", 1, 2, 257, 4096, 8, "{{ template }}", 64, "fake", 2, 3);
    }

    @Override
    public int[] tokenize(String text, boolean addSpecial, boolean parseSpecial) {
        beforeTokenize.run();
        if (text.contains(WITHOUT_TOKEN)) {
            throw new KvmergeException.Usage("the model has no token for U+E000");
        }
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        int[] tokens = new int[bytes.length];
        for (int i = 0; i < tokens.length; i++) {
            tokens[i] = parseSpecial && bytes[i] == '\f' ? END : bytes[i] & 0xFF;
        }
        return tokens;
    }

    @Override
    public byte[] piece(int token) {
        return new byte[] {token == END ? (byte) '\f' : (byte) token};
    }

    @Override
    public boolean special(int token) {
        return token == END;
    }

    @Override
    public Written write(List<ChatMessage> conversation) {
        if (conversation.stream().anyMatch(m -> m.content().equals("refuse me"))) {
            throw new KvmergeException("the chat template refuses the conversation: not that");
        }
        StringBuilder text = new StringBuilder();
        conversation.forEach(m ->
                text.append(m.role().charAt(0)).append(':').append(m.content()).append('\f'));
        String all = text + "a:";
        return new Written(all, tokenize(all, true, true));
    }

    @Override
    public Conversation open() {
        Talk talk = new Talk();
        talks.add(talk);
        return talk;
    }

    @Override
    public void close() {
        closed = true;
    }

    final class Talk implements Conversation {
        private volatile int[] tokens = {};
        private volatile boolean stopped;
        volatile boolean closed;

        private int known(Prompt prompt) {
            return prompt.cached() && Arrays.mismatch(tokens, prompt.tokens()) == tokens.length ? tokens.length : 0;
        }

        @Override
        public Generation answer(Prompt prompt, GenerateOptions options, Consumer<String> onText) {
            if (options.sampling().grammar().contains("wrong")) {
                throw new KvmergeException.Usage("the grammar (--grammar) cannot be parsed");
            }
            if (breaks) {
                throw new IllegalStateException("secret of /root");
            }
            int known = known(prompt);
            tokens = prompt.tokens();
            options.progress().read(tokens.length - known, tokens.length - known);
            stopped = false;
            generating.incrementAndGet();
            try {
                return say(prompt, known, options, onText);
            } finally {
                generating.decrementAndGet();
            }
        }

        private Generation say(Prompt prompt, int known, GenerateOptions options, Consumer<String> onText) {
            String all = new String(bytes(prompt.tokens()), StandardCharsets.UTF_8);
            int said = all.lastIndexOf("say:");
            String answer = said < 0
                    ? "abcdefghij".repeat(1000)
                    : all.substring(said + 4).split("\f", 2)[0];
            StringBuilder text = new StringBuilder();
            Consumer<TokenLogprob> chosen = options.logprobs() < 0 ? token -> {} : options.onLogprob();
            Ended ended = Ended.END_OF_GENERATION;
            String stop = null;
            long until = System.nanoTime() + options.timeout().toNanos();
            for (int c : answer.codePoints().toArray()) {
                if (text.length() >= options.maxTokens()) {
                    ended = Ended.LENGTH;
                    break;
                }
                Ended waited = await(until);
                if (waited != null) {
                    ended = waited;
                    break;
                }
                if (c == CONTROL) {
                    chosen.accept(new TokenLogprob(END, "<|control|>".getBytes(StandardCharsets.UTF_8), -1, List.of()));
                    continue;
                }
                text.appendCodePoint(c);
                for (String one : options.stop()) {
                    stop = text.indexOf(one) >= 0 ? one : stop;
                }
                if (stop != null) {
                    ended = Ended.STOP;
                    text.setLength(text.indexOf(stop));
                    break;
                }
                byte[] piece = Character.toString(c).getBytes(StandardCharsets.UTF_8);
                for (byte[] one : c < 0x4E00 ? List.of(piece) : parts(piece)) {
                    chosen.accept(new TokenLogprob(c, one, -0.5, List.of(new TokenLogprob(c, one, -0.5, List.of()))));
                }
                onText.accept(Character.toString(c));
            }
            int[] made = tokenize(text + (ended == Ended.END_OF_GENERATION ? "\f" : ""), false, true);
            int[] read = prompt.tokens();
            tokens = Arrays.copyOf(read, read.length + made.length);
            System.arraycopy(made, 0, tokens, read.length, made.length);
            return new Generation(
                    text.toString(),
                    made,
                    ended,
                    stop,
                    read.length,
                    read.length - known,
                    List.of(),
                    Duration.ofMillis(2),
                    Duration.ofMillis(3));
        }

        private static List<byte[]> parts(byte[] piece) {
            List<byte[]> parts = new ArrayList<>();
            for (byte part : piece) {
                parts.add(new byte[] {part});
            }
            return parts;
        }

        /** Waits for leave to go on; why the generation ends, or null. */
        private Ended await(long until) {
            try {
                while (!pace.tryAcquire(2, TimeUnit.MILLISECONDS)) {
                    if (stopped) {
                        return Ended.CANCELLED;
                    }
                    if (System.nanoTime() > until) {
                        return Ended.TIMEOUT;
                    }
                }
                return stopped ? Ended.CANCELLED : null;
            } catch (InterruptedException e) {
                return Ended.CANCELLED;
            }
        }

        private byte[] bytes(int[] of) {
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            for (int token : of) {
                out.writeBytes(piece(token));
            }
            return out.toByteArray();
        }

        @Override
        public int[] tokens() {
            return tokens;
        }

        @Override
        public CellsUsage usage() {
            return new CellsUsage(tokens.length, Math.min(tokens.length, 64), 192, 3 << 19, 2);
        }

        @Override
        public Cells cells() {
            pictures.incrementAndGet();
            beforeCells.run();
            int n = tokens.length;
            return new Cells() {
                @Override
                public int tokens() {
                    return n;
                }

                @Override
                public int cellsInUse() {
                    return Math.min(n, 64);
                }

                @Override
                public int cellsAllocated() {
                    return 192;
                }

                @Override
                public long bytes() {
                    return 3 << 19;
                }

                @Override
                public int pinned() {
                    return 2;
                }

                @Override
                public Fate fate(int layer, int kvHead, int token) {
                    return Fate.values()[(layer + kvHead + token) % 3];
                }

                @Override
                public int pivot(int layer, int kvHead, int token) {
                    return token + 1;
                }

                @Override
                public double[] shares(int token) {
                    return new double[] {0.25, 0.5, 0.25};
                }
            };
        }

        @Override
        public void clear() {
            tokens = new int[0];
        }

        @Override
        public void save(Path file) {
            try {
                Files.write(file, bytes(tokens));
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }

        @Override
        public void restore(Path file) {
            try {
                String saved = Files.readString(file);
                if (saved.startsWith("foreign")) {
                    throw new KvmergeException("the saved session " + file + " is of another model");
                }
                tokens = tokenize(saved, false, true);
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }

        @Override
        public void cancel() {
            beforeCancel.run();
            stopped = true;
            cancelled.incrementAndGet();
        }

        @Override
        public void close() {
            closed = true;
        }
    }
}
