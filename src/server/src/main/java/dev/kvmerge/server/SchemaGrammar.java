package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
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
    private static final int MOST_REPEATED = 1000;
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

    /**
     * Reads a schema.
     *
     * @param where its name in the request
     */
    SchemaGrammar(String where, JsonNode root) {
        this.where = where;
        this.root = root;
        rules.put("root", value(root, where));
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
            return any(list(schema.get("enum"), at + ".enum").stream()
                    .map(SchemaGrammar::literal)
                    .toList());
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
            only(schema, at, Set.of("properties", "required", "additionalProperties"));
            return schema.has("properties") ? object(schema, at) : "value";
        }
        List<String> all = new ArrayList<>();
        for (JsonNode one : type.isTextual() ? List.of(type) : list(type, at + ".type")) {
            all.add(typed(schema, one.asText(""), at, type.isTextual()));
        }
        return any(all);
    }

    private String typed(JsonNode schema, String type, String at, boolean alone) {
        switch (type) {
            case "object" -> {
                if (alone) {
                    only(schema, at, Set.of("type", "properties", "required", "additionalProperties"));
                }
                return object(schema, at);
            }
            case "array" -> {
                if (alone) {
                    only(schema, at, Set.of("type", "items", "minItems", "maxItems"));
                }
                return array(schema, at);
            }
            case "string" -> {
                if (alone) {
                    only(schema, at, Set.of("type", "minLength", "maxLength"));
                }
                String times = times(schema, "minLength", "maxLength", at);
                return times.equals("*") ? "string" : "\"\\\"\" char" + times + " \"\\\"\" ws";
            }
            default -> {
                if (alone) {
                    only(schema, at, Set.of("type"));
                }
                return switch (type) {
                    case "integer", "number" -> type;
                    case "boolean" -> "(\"true\" | \"false\") ws";
                    case "null" -> "\"null\" ws";
                    default -> throw refused(at + ".type", "the type '" + type + "'");
                };
            }
        }
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
        Set<String> required = list(schema.path("required"), at + ".required").stream()
                .map(JsonNode::asText)
                .collect(Collectors.toSet());
        List<String> first = new ArrayList<>();
        List<String> optional = new ArrayList<>();
        properties.properties().forEach(property -> {
            String name = literal(TextNode.valueOf(property.getKey()));
            String rule =
                    rule(name + " \":\" ws " + value(property.getValue(), at + ".properties." + property.getKey()));
            (required.remove(property.getKey()) ? first : optional).add(rule);
        });
        if (!required.isEmpty()) {
            throw refused(at + ".required", "'" + required.iterator().next() + "', which is not among the properties");
        }
        String inside = String.join(" \",\" ws ", first);
        if (first.isEmpty()) {
            List<String> starts = new ArrayList<>();
            for (int i = 0; i < optional.size(); i++) {
                starts.add(optional.get(i) + rest(optional.subList(i + 1, optional.size())));
            }
            inside = "(" + String.join(" | ", starts) + ")?";
        } else {
            inside += rest(optional);
        }
        return rule("\"{\" ws " + inside + " \"}\" ws");
    }

    private static String rest(List<String> optional) {
        return optional.stream().map(o -> " (\",\" ws " + o + ")?").collect(Collectors.joining());
    }

    private String array(JsonNode schema, String at) {
        String item = schema.has("items") ? rule(value(schema.get("items"), at + ".items")) : "value";
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
        rules.put(name, value(target, pointer));
        return name;
    }

    private String rule(String body) {
        String name = "r" + made++;
        rules.put(name, body);
        return name;
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
