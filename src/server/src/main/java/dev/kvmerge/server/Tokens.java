package dev.kvmerge.server;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.Set;

/** POST /tokenize and /detokenize, as llama-server has them. */
final class Tokens {
    private final Inference inference;

    Tokens(Inference inference) {
        this.inference = inference;
    }

    ObjectNode tokenize(ObjectNode request) {
        Fields fields = new Fields(request);
        fields.only(Set.of("content", "add_special", "parse_special", "with_pieces"));
        String content = fields.text("content", null);
        if (content == null) {
            throw Fields.missing("content");
        }
        int[] tokens =
                inference.tokenize(content, fields.flag("add_special", false), fields.flag("parse_special", true));
        boolean pieces = fields.flag("with_pieces", false);
        ObjectNode body = Json.object();
        ArrayNode list = body.putArray("tokens");
        for (int token : tokens) {
            if (pieces) {
                putPiece(list.addObject().put("id", token), inference.piece(token));
            } else {
                list.add(token);
            }
        }
        return body;
    }

    ObjectNode detokenize(ObjectNode request) {
        Fields fields = new Fields(request);
        fields.only(Set.of("tokens"));
        int[] tokens = fields.tokens("tokens", inference.facts().vocabulary());
        if (tokens == null) {
            throw Fields.missing("tokens");
        }
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        for (int token : tokens) {
            bytes.writeBytes(inference.piece(token));
        }
        ObjectNode body = Json.object();
        body.put("content", bytes.toString(StandardCharsets.UTF_8));
        return body;
    }

    /** A token's piece: a text, or its bytes where it is but a part of a character. */
    static void putPiece(ObjectNode into, byte[] piece) {
        try {
            into.put(
                    "piece",
                    StandardCharsets.UTF_8
                            .newDecoder()
                            .decode(ByteBuffer.wrap(piece))
                            .toString());
        } catch (CharacterCodingException e) {
            ArrayNode bytes = into.putArray("piece");
            for (byte b : piece) {
                bytes.add(b & 0xFF);
            }
        }
    }
}
