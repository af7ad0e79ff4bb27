package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import java.io.DataInputStream;
import java.io.IOException;
import java.io.StreamCorruptedException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads what {@link SessionFile} has written of a session. The file may be made by anyone: no length in it goes past
 * its end, and what cannot be of a session is refused.
 */
final class SavedReader {
    private static final int LONGEST_REST = 3; // bytes of a character that has not come whole
    private static final long DRAWS = 4; // most, for each token: two where a grammar forbids the first choice

    private final DataInputStream in;
    private long left; // bytes

    /**
     * Reads on.
     *
     * @param left bytes that there are at most
     */
    SavedReader(DataInputStream in, long left) {
        this.in = in;
        this.left = left;
    }

    /**
     * A session.
     *
     * @throws StreamCorruptedException if it is none
     */
    Saved saved(int vocabulary) throws IOException {
        int[] tokens = new int[count(Integer.BYTES)];
        for (int i = 0; i < tokens.length; i++) {
            tokens[i] = within(0, number(), vocabulary - 1);
        }
        int decoded = within(0, number(), tokens.length);
        BitSet generated = BitSet.valueOf(bytes());
        within(0, generated.length(), tokens.length);
        byte[] rest = bytes();
        within(0, rest.length, LONGEST_REST);
        float[] logits = new float[count(Float.BYTES)];
        if (logits.length != 0 && logits.length != vocabulary) {
            throw wrong();
        }
        for (int i = 0; i < logits.length; i++) {
            logits[i] = real();
        }
        Saved.Pinned pinned = new Saved.Pinned(within(0, number(), decoded), flag() ? bytes() : null);
        List<ChatMessage> messages = new ArrayList<>();
        for (int n = count(2 * Integer.BYTES); n > 0; n--) {
            messages.add(new ChatMessage(text(), text()));
        }
        Drawing.State drawing = flag() ? drawing(tokens.length) : null;
        return new Saved(tokens, decoded, generated, rest, logits, pinned, messages, drawing);
    }

    private Drawing.State drawing(int tokens) throws IOException {
        float[] f = new float[7];
        for (int i = 0; i < f.length; i++) {
            f[i] = real();
        }
        int topK = number();
        int lastN = number();
        long seed = longNumber();
        String grammar = text();
        Map<Integer, Float> bias = new HashMap<>();
        for (int n = count(Integer.BYTES + Float.BYTES); n > 0; n--) {
            bias.put(number(), real());
        }
        Sampling sampling;
        try {
            sampling = new Sampling(f[0], topK, f[1], f[2], f[3], f[4], lastN, f[5], f[6], seed, grammar, bias);
        } catch (KvmergeException | IllegalArgumentException e) {
            throw wrong();
        }
        boolean ignoreEos = flag();
        int drawnSeed = number();
        long drawn = longNumber();
        if (drawn < 0 || drawn > DRAWS * tokens) { // they are drawn again
            throw wrong();
        }
        return new Drawing.State(sampling, ignoreEos, drawnSeed, drawn, within(0, number(), tokens));
    }

    String text() throws IOException {
        return new String(bytes(), StandardCharsets.UTF_8);
    }

    private byte[] bytes() throws IOException {
        int n = count(1);
        take(n);
        return in.readNBytes(n);
    }

    /** How many there are of something that takes at least so many bytes each. */
    private int count(int bytesEach) throws IOException {
        return within(0, number(), (int) Math.min(Integer.MAX_VALUE, left / bytesEach));
    }

    private int number() throws IOException {
        take(Integer.BYTES);
        return in.readInt();
    }

    private long longNumber() throws IOException {
        take(Long.BYTES);
        return in.readLong();
    }

    private float real() throws IOException {
        take(Float.BYTES);
        return in.readFloat();
    }

    private boolean flag() throws IOException {
        take(1);
        return in.readBoolean();
    }

    private void take(int n) throws IOException {
        if (n > left) {
            throw wrong();
        }
        left -= n;
    }

    private static int within(int least, int value, int most) throws IOException {
        if (value < least || value > most) {
            throw wrong();
        }
        return value;
    }

    private static StreamCorruptedException wrong() {
        return new StreamCorruptedException("no session");
    }
}
