package dev.kvmerge.server;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonLocation;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.regex.Pattern;

/** JSON in UTF-8, read strictly. */
final class Json {
    private static final int DEEPEST = 100;

    private static final ObjectMapper MAPPER = new ObjectMapper(JsonFactory.builder()
                    .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                    .streamReadConstraints(StreamReadConstraints.builder()
                            .maxNestingDepth(DEEPEST)
                            .maxStringLength(Integer.MAX_VALUE) // the body's length is bounded
                            .build())
                    .build())
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS);

    /** What Jackson's messages say to who configures it. */
    private static final Pattern TO_PROGRAMMERS = Pattern.compile(
            ", from `[^`]*`| \\(bound as `[^`]*`\\)|: not allowed as per `[^`]*`|: enable `[^`]*` to allow"
                    + "|\\[Source: REDACTED \\(`[^`]*` disabled\\); (line: \\d+, column: \\d+)\\]");

    private Json() {}

    static ObjectNode object() {
        return JsonNodeFactory.instance.objectNode();
    }

    /** A request's object. */
    static ObjectNode parse(byte[] body) {
        String text;
        try {
            text = StandardCharsets.UTF_8
                    .newDecoder()
                    .decode(ByteBuffer.wrap(body))
                    .toString();
        } catch (CharacterCodingException e) {
            throw ApiException.invalid(null, "invalid_encoding", "The request's body is not UTF-8.");
        }
        if (text.isBlank()) {
            throw ApiException.invalid(null, "invalid_json", "The request has no body: send a JSON object.");
        }
        try {
            JsonNode parsed = MAPPER.readTree(text);
            if (parsed instanceof ObjectNode object) {
                return object;
            }
        } catch (JsonProcessingException e) {
            JsonLocation at = e.getLocation();
            throw ApiException.invalid(
                    null,
                    "invalid_json",
                    "The request's body is not JSON"
                            + (at == null ? "" : " (line " + at.getLineNr() + ", column " + at.getColumnNr() + ")")
                            + ": " + why(e) + ".");
        }
        throw ApiException.invalid(null, "invalid_json", "The request's body must be a JSON object.");
    }

    private static String why(JsonProcessingException e) {
        String first = e.getOriginalMessage().lines().findFirst().orElse("");
        return TO_PROGRAMMERS.matcher(first).replaceAll("$1");
    }

    static byte[] bytes(JsonNode node) {
        try {
            return MAPPER.writeValueAsBytes(node);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** What a value is, in a person's words. */
    static String kind(JsonNode value) {
        return switch (value.getNodeType()) {
            case ARRAY -> "an array";
            case BOOLEAN -> "a boolean";
            case NUMBER -> value.isIntegralNumber() ? "an integer" : "a number";
            case OBJECT -> "an object";
            case STRING -> "a string";
            default -> "null";
        };
    }
}
