package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/** The grammar that a request asks for: GBNF of its own, or for JSON, of a schema or of any. */
final class Grammars {
    private Grammars() {}

    /** GBNF, or an empty text for none. */
    static String of(Fields fields) {
        List<String> grammars = new ArrayList<>();
        String own = fields.text("grammar", "");
        if (!own.isEmpty()) {
            grammars.add(own);
        }
        JsonNode schema = fields.get("json_schema");
        if (schema != null) {
            grammars.add(new SchemaGrammar("json_schema", schema).text());
        }
        Fields format = fields.object("response_format");
        if (format != null) {
            grammars.add(format(format));
        }
        grammars.removeIf(String::isEmpty);
        if (grammars.size() > 1) {
            throw ApiException.invalid(
                    "response_format",
                    "invalid_value",
                    "One of 'grammar', 'json_schema' and 'response_format' can be obeyed at a time.");
        }
        return grammars.isEmpty() ? "" : grammars.getFirst();
    }

    private static String format(Fields format) {
        String type = format.text("type", null);
        if (type == null) {
            throw Fields.missing("response_format.type");
        }
        switch (type) {
            case "text" -> {
                format.only(Set.of("type"));
                return "";
            }
            case "json_object" -> {
                format.only(Set.of("type", "schema"));
                JsonNode schema = format.get("schema"); // llama-server's
                return schema == null
                        ? SchemaGrammar.anyObject()
                        : new SchemaGrammar("response_format.schema", schema).text();
            }
            case "json_schema" -> {
                format.only(Set.of("type", "json_schema"));
                Fields named = format.object("json_schema");
                if (named == null) {
                    throw Fields.missing("response_format.json_schema");
                }
                named.only(Set.of("name", "description", "schema", "strict"));
                return named.get("schema") instanceof ObjectNode schema
                        ? new SchemaGrammar("response_format.json_schema.schema", schema).text()
                        : SchemaGrammar.anyObject();
            }
            default ->
                throw ApiException.unsupported(
                        "response_format.type",
                        "Unsupported value: 'response_format.type' is '" + type
                                + "'; it is text, json_object or json_schema.");
        }
    }
}
