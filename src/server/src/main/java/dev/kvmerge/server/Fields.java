package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/** A request's fields, each read by its name and type. A field that is null counts as absent. */
final class Fields {
    private final ObjectNode object;
    private final String prefix; // of names in messages

    Fields(ObjectNode object) {
        this(object, "");
    }

    private Fields(ObjectNode object, String prefix) {
        this.object = object;
        this.prefix = prefix;
    }

    /** The value, or null. */
    JsonNode get(String name) {
        JsonNode value = object.get(name);
        return value == null || value.isNull() ? null : value;
    }

    boolean has(String name) {
        return get(name) != null;
    }

    /** Refuses what is none of these names, as OpenAI does: a name may be mistyped. */
    void only(Set<String> names) {
        object.fieldNames().forEachRemaining(name -> {
            if (!names.contains(name)) {
                throw ApiException.invalid(
                        prefix + name, "unknown_parameter", "Unrecognized request argument supplied: " + prefix + name);
            }
        });
    }

    boolean flag(String name, boolean otherwise) {
        JsonNode value = get(name);
        if (value == null) {
            return otherwise;
        }
        if (!value.isBoolean()) {
            throw wrongType(prefix + name, "a boolean", value);
        }
        return value.booleanValue();
    }

    String text(String name, String otherwise) {
        JsonNode value = get(name);
        if (value == null) {
            return otherwise;
        }
        if (!value.isTextual()) {
            throw wrongType(prefix + name, "a string", value);
        }
        return value.textValue();
    }

    int integer(String name, int otherwise, int least, int most) {
        return (int) whole(name, otherwise, least, most);
    }

    long whole(String name, long otherwise, long least, long most) {
        JsonNode value = get(name);
        return value == null ? otherwise : whole(prefix + name, value, least, most);
    }

    static long whole(String name, JsonNode value, long least, long most) {
        boolean integral = value.isIntegralNumber()
                || value.isNumber() && value.decimalValue().stripTrailingZeros().scale() <= 0;
        if (!integral) {
            throw wrongType(name, "an integer", value);
        }
        if (!value.canConvertToLong() || value.longValue() < least || value.longValue() > most) {
            throw outOfRange(name, value, least + " to " + most);
        }
        return value.longValue();
    }

    float number(String name, float otherwise, double least, double most) {
        JsonNode value = get(name);
        if (value == null) {
            return otherwise;
        }
        if (!value.isNumber()) {
            throw wrongType(prefix + name, "a number", value);
        }
        double d = value.doubleValue();
        if (!(d >= least && d <= most)) {
            throw outOfRange(prefix + name, value, plain(least) + " to " + plain(most));
        }
        return (float) d;
    }

    Fields object(String name) {
        JsonNode value = get(name);
        if (value == null) {
            return null;
        }
        if (!(value instanceof ObjectNode inner)) {
            throw wrongType(prefix + name, "an object", value);
        }
        return new Fields(inner, prefix + name + ".");
    }

    /** An array of so many at most, or null. */
    List<JsonNode> array(String name, int most) {
        JsonNode value = get(name);
        if (value == null) {
            return null;
        }
        if (!value.isArray()) {
            throw wrongType(prefix + name, "an array", value);
        }
        if (value.size() > most) {
            throw ApiException.invalid(
                    prefix + name,
                    "array_above_max_length",
                    "'" + prefix + name + "' has " + value.size() + " elements; this server takes " + most
                            + " at most.");
        }
        List<JsonNode> all = new ArrayList<>();
        value.forEach(all::add);
        return all;
    }

    /** An array of token numbers, or null. */
    int[] tokens(String name, int vocabulary) {
        List<JsonNode> all = array(name, Integer.MAX_VALUE);
        if (all == null) {
            return null;
        }
        int[] tokens = new int[all.size()];
        for (int i = 0; i < tokens.length; i++) {
            tokens[i] = token(prefix + name + "[" + i + "]", all.get(i), vocabulary);
        }
        return tokens;
    }

    static int token(String name, JsonNode value, int vocabulary) {
        return (int) whole(name, value, 0, vocabulary - 1L);
    }

    static ApiException wrongType(String name, String expected, JsonNode value) {
        return ApiException.invalid(
                name,
                "invalid_type",
                "Invalid type for '" + name + "': expected " + expected + ", but got " + Json.kind(value)
                        + " instead.");
    }

    static ApiException outOfRange(String name, JsonNode value, String range) {
        return ApiException.invalid(
                name, "invalid_value", "Invalid value for '" + name + "': " + value + ". It must be " + range + ".");
    }

    static ApiException missing(String name) {
        return ApiException.invalid(name, "missing_required_parameter", "Missing required parameter: '" + name + "'.");
    }

    private static String plain(double d) {
        return d == Math.rint(d) ? Long.toString((long) d) : Double.toString(d);
    }
}
