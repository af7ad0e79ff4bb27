package dev.kvmerge.server;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.engine.TokenLogprob;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Queue;
import java.util.function.IntPredicate;

/**
 * Log probabilities of the tokens that an answer's text is made of: not of special ones, nor of what ended it. Tokens
 * come before their text does, which may be held back as the beginning of a stop string.
 */
final class PlacedLogprobs {
    /** A token, and where in the text its first character is, in code points. */
    private record Place(TokenLogprob token, int offset) {}

    private final IntPredicate special;
    private final Queue<Place> waiting = new ArrayDeque<>();
    private int offset;
    private byte[] begun = {}; // of a character that has not come whole
    private int told; // code points of the text

    /** @param special whether a token is no text */
    PlacedLogprobs(IntPredicate special) {
        this.special = special;
    }

    /** Adds the next token that was generated. */
    void add(TokenLogprob token) {
        if (special.test(token.token())) {
            return;
        }
        waiting.add(new Place(token, offset));
        ByteBuffer in = ByteBuffer.allocate(begun.length + token.piece().length);
        in.put(begun).put(token.piece()).flip();
        CharBuffer out = CharBuffer.allocate(in.remaining() + 1);
        StandardCharsets.UTF_8
                .newDecoder()
                .onMalformedInput(CodingErrorAction.REPLACE)
                .decode(in, out, false);
        out.flip();
        offset += Character.codePointCount(out, 0, out.length());
        begun = Arrays.copyOfRange(in.array(), in.position(), in.limit());
    }

    /**
     * The tokens that begin in the next piece of the text, as OpenAI has them.
     *
     * @param chat in a chat's form, or in a completion's
     */
    ObjectNode take(String text, boolean chat) {
        told += text.codePointCount(0, text.length());
        List<Place> places = new ArrayList<>();
        while (!waiting.isEmpty() && waiting.peek().offset() < told) {
            places.add(waiting.remove());
        }
        return chat ? chat(places) : completion(places);
    }

    private static ObjectNode chat(List<Place> places) {
        ObjectNode logprobs = Json.object();
        ArrayNode content = logprobs.putArray("content");
        for (Place place : places) {
            ArrayNode top = put(content.addObject(), place.token()).putArray("top_logprobs");
            place.token().top().forEach(other -> put(top.addObject(), other));
        }
        logprobs.putNull("refusal");
        return logprobs;
    }

    private static ObjectNode put(ObjectNode into, TokenLogprob token) {
        into.put("token", text(token));
        into.put("logprob", Math.max(token.logprob(), -9999.0)); // as OpenAI's: JSON has no infinity
        ArrayNode bytes = into.putArray("bytes");
        for (byte b : token.piece()) {
            bytes.add(b & 0xFF);
        }
        return into;
    }

    private static ObjectNode completion(List<Place> places) {
        ObjectNode logprobs = Json.object();
        ArrayNode pieces = logprobs.putArray("tokens");
        ArrayNode values = logprobs.putArray("token_logprobs");
        ArrayNode tops = logprobs.putArray("top_logprobs");
        ArrayNode offsets = logprobs.putArray("text_offset");
        for (Place place : places) {
            TokenLogprob token = place.token();
            pieces.add(text(token));
            values.add(Math.max(token.logprob(), -9999.0));
            ObjectNode top = tops.addObject();
            token.top().forEach(other -> top.put(text(other), Math.max(other.logprob(), -9999.0)));
            offsets.add(place.offset());
        }
        return logprobs;
    }

    private static String text(TokenLogprob token) {
        return new String(token.piece(), StandardCharsets.UTF_8);
    }
}
