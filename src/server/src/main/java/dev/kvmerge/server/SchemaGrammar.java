package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/**
 * A JSON schema as a grammar in GBNF. What the grammar cannot hold to is refused by name. An object has its required
 * properties first, each kind in the schema's order, and no others than it names.
 */
final class SchemaGrammar {
    private static final Set<String> SAYS_NOTHING =
            Set.of("title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "$comment");
    private static final Map<String, Set<String>> OF_TYPE = Map.of(
            "object", Set.of("properties", "required", "additionalProperties"),
            "array", Set.of("items", "minItems", "maxItems"),
            "string", Set.of("minLength", "maxLength"));
    private static final int MOST_REPEATED = 1000;
    private static final int LONGEST = 32 << 10; // characters of the rules
    private static final int MOST_PROPERTIES = 1000;
    private static final int DEEPEST = 64;
    private static final String JSON = """
            value ::= object | array | string | number | "true" ws | "false" ws | "null" ws
            object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
            array ::= "[" ws (value ("," ws value)*)? "]" ws
            char ::= [^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{4})
            string ::= "\\"" char* "\\"" ws
            integer ::= "-"? ("0" | [1-9] [0-9]{0,15}) ws
            number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? ws
            ws ::= " "? | "\\n" [ \\t]{0,20}
            """;

    private final String where;
    private final JsonNode root;
    private final Map<String, String> rules = new LinkedHashMap<>();
    private final Map<String, String> references = new HashMap<>(); // a pointer's rule
    private int made;
    private int length;
    private int properties;
    private int depth;

    /**
     * Reads a schema.
     *
     * @param where its name in the request
     */
    SchemaGrammar(String where, JsonNode root) {
        this.where = where;
        this.root = root;
        put("root", value(root, where), where);
    }

    /** The grammar of any object. */
    static String anyObject() {
        return "root ::= object\n" + JSON;
    }

    String text() {
        return rules.entrySet().stream()
                        .map(rule -> rule.getKey() + " ::= " + rule.getValue() + "\n")
                        .collect(Collectors.joining())
                + JSON;
    }

    private String value(JsonNode schema, String at) {
        if (++depth > DEEPEST) { // also of references, which the depth of JSON does not bound
            throw refused(at, "more than " + DEEPEST + " schemas within each other");
        }
        String value = alternatives(schema, at);
        depth--;
        return value;
    }

    private String alternatives(JsonNode schema, String at) {
        if (schema.isBoolean() && schema.booleanValue()) {
            return "value";
        }
        if (!schema.isObject()) {
            throw Fields.wrongType(at, "a JSON schema", schema);
        }
        if (schema.has("$ref")) {
            only(schema, at, Set.of("$ref"));
            return reference(schema.get("$ref").asText(""), at);
        }
        if (schema.has("const")) {
            only(schema, at, Set.of("const", "type"));
            return literal(schema.get("const"));
        }
        if (schema.has("enum")) {
            only(schema, at, Set.of("enum", "type"));
            List<String> all = new ArrayList<>();
            for (JsonNode one : list(schema.get("enum"), at + ".enum")) {
                all.add(literal(one));
            }
            return any(all);
        }
        for (String either : List.of("anyOf", "oneOf")) {
            if (schema.has(either)) {
                only(schema, at, Set.of(either));
                List<String> all = new ArrayList<>();
                for (JsonNode one : list(schema.get(either), at + "." + either)) {
                    all.add(value(one, at + "." + either));
                }
                return any(all);
            }
        }
        JsonNode type = schema.get("type");
        if (type == null) {
            only(schema, at, OF_TYPE.get("object"));
            return schema.has("properties") ? object(schema, at) : "value";
        }
        Set<String> types = new LinkedHashSet<>();
        for (JsonNode one : type.isTextual() ? List.of(type) : list(type, at + ".type")) {
            types.add(one.asText(""));
        }
        Set<String> constraints = new HashSet<>(Set.of("type")); // each is of one of the types
        types.forEach(one -> constraints.addAll(OF_TYPE.getOrDefault(one, Set.of())));
        only(schema, at, constraints);
        return any(types.stream().map(one -> typed(schema, one, at)).toList());
    }

    private String typed(JsonNode schema, String type, String at) {
        return switch (type) {
            case "object" -> object(schema, at);
            case "array" -> array(schema, at);
            case "string" -> {
                String times = times(schema, "minLength", "maxLength", at);
                yield times.equals("*") ? "string" : "\"\\\"\" char" + times + " \"\\\"\" ws";
            }
            case "integer", "number" -> type;
            case "boolean" -> "(\"true\" | \"false\") ws";
            case "null" -> "\"null\" ws";
            default -> throw refused(at + ".type", "the type '" + type + "'");
        };
    }

    private String object(JsonNode schema, String at) {
        JsonNode additional = schema.path("additionalProperties");
        JsonNode properties = schema.path("properties");
        if (properties.isEmpty()) {
            return additional.isBoolean() && !additional.booleanValue() ? "\"{\" ws \"}\" ws" : "object";
        }
        if (additional.isContainerNode() || additional.isBoolean() && additional.booleanValue()) {
            throw refused(at + ".additionalProperties", "properties without a name");
        }
        this.properties += properties.size();
        if (this.properties > MOST_PROPERTIES) {
            throw refused(at + ".properties", "more than " + MOST_PROPERTIES + " properties");
        }
        Set<String> required = list(schema.path("required"), at + ".required").stream()
                .map(JsonNode::asText)
                .collect(Collectors.toSet());
        List<String> first = new ArrayList<>();
        List<String> optional = new ArrayList<>();
        properties.properties().forEach(property -> {
            String inside = at + ".properties." + property.getKey();
            String name = literal(TextNode.valueOf(property.getKey()));
            String rule = rule(name + " \":\" ws " + value(property.getValue(), inside), inside);
            (required.remove(property.getKey()) ? first : optional).add(rule);
        });
        if (!required.isEmpty()) {
            throw refused(at + ".required", "'" + required.iterator().next() + "', which is not among the properties");
        }
        String inside = first.isEmpty()
                ? onlyOptional(optional, at)
                : String.join(" \",\" ws ", first) + rests(optional, at).getFirst();
        return rule("\"{\" ws " + inside + " \"}\" ws", at);
    }

    /** Properties of which none must be there: the first of those that are stands without a comma. */
    private String onlyOptional(List<String> optional, String at) {
        List<String> rests = rests(optional, at);
        List<String> starts = new ArrayList<>();
        for (int i = 0; i < optional.size(); i++) {
            starts.add(optional.get(i) + rests.get(i + 1));
        }
        return "(" + String.join(" | ", starts) + ")?";
    }

    /** What may follow before the first, the second and so on: each rule names the next, so that all are short. */
    private List<String> rests(List<String> optional, String at) {
        List<String> rests = new ArrayList<>(List.of(""));
        for (String one : optional.reversed()) {
            rests.add(" " + rule("(\",\" ws " + one + ")?" + rests.getLast(), at));
        }
        return rests.reversed();
    }

    private String array(JsonNode schema, String at) {
        String item = schema.has("items") ? rule(value(schema.get("items"), at + ".items"), at) : "value";
        int least = count(schema, "minItems", 0, at);
        int most = count(schema, "maxItems", -1, at);
        if (most == 0) {
            return "\"[\" ws \"]\" ws";
        }
        String more = " (\",\" ws " + item + ")" + repeated(Math.max(0, least - 1), most < 0 ? -1 : most - 1);
        return "\"[\" ws " + (least == 0 ? "(" + item + more + ")?" : item + more) + " \"]\" ws";
    }

    private String times(JsonNode schema, String least, String most, String at) {
        return repeated(count(schema, least, 0, at), count(schema, most, -1, at));
    }

    private static String repeated(int least, int most) {
        return least == 0 && most < 0 ? "*" : "{" + least + "," + (most < 0 ? "" : most) + "}";
    }

    private static int count(JsonNode schema, String name, int otherwise, String at) {
        JsonNode value = schema.get(name);
        return value == null ? otherwise : (int) Fields.whole(at + "." + name, value, 0, MOST_REPEATED);
    }

    private String reference(String pointer, String at) {
        String known = references.get(pointer);
        if (known != null) {
            return known;
        }
        JsonNode target = pointer.equals("#")
                ? root
                : pointer.startsWith("#/") ? root.at(pointer.substring(1)) : TextNode.valueOf(pointer);
        if (!target.isObject()) {
            throw refused(at + ".$ref", "the reference '" + pointer + "', which is not of this schema");
        }
        String name = "r" + made++;
        references.put(pointer, name); // before it is made: a schema may contain itself
        put(name, value(target, pointer), at);
        return name;
    }

    private String rule(String body, String at) {
        String name = "r" + made++;
        put(name, body, at);
        return name;
    }

    private void put(String name, String body, String at) {
        length += name.length() + body.length();
        if (length > LONGEST) {
            throw refused(at, "so much: its rules would have more than " + LONGEST + " characters");
        }
        rules.put(name, body);
    }

    private static String any(List<String> all) {
        return all.size() == 1 ? all.getFirst() : "(" + String.join(" | ", all) + ")";
    }

    /** A JSON value as GBNF's literal. */
    private static String literal(JsonNode value) {
        String json = value.toString();
        String escaped = IntStream.range(0, json.length())
                .mapToObj(i -> switch (json.charAt(i)) {
                    case '"' -> "\\\"";
                    case '\\' -> "\\\\";
                    default -> String.valueOf(json.charAt(i));
                })
                .collect(Collectors.joining());
        return "\"" + escaped + "\" ws";
    }

    private List<JsonNode> list(JsonNode array, String at) {
        if (!array.isArray() && !array.isMissingNode()) {
            throw Fields.wrongType(at, "an array", array);
        }
        List<JsonNode> all = new ArrayList<>();
        array.forEach(all::add);
        return all;
    }

    private void only(JsonNode schema, String at, Set<String> names) {
        schema.fieldNames().forEachRemaining(name -> {
            if (!names.contains(name) && !SAYS_NOTHING.contains(name)) {
                throw refused(at + "." + name, "'" + name + "'");
            }
        });
    }

    private ApiException refused(String at, String what) {
        return ApiException.unsupported(
                where, "Unsupported JSON schema: a grammar cannot hold to " + what + " (at " + at + ").");
    }
}
