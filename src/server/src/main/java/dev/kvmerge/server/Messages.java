package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.engine.ChatMessage;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/** Reads the messages of a conversation: their text; images, sounds, files and calls of tools are refused. */
final class Messages {
    private static final Set<String> ROLES = Set.of("system", "developer", "user", "assistant");
    private static final Set<String> NAMES = Set.of(
            "role",
            "content",
            "name",
            "refusal",
            "annotations",
            "audio",
            "tool_calls",
            "function_call",
            "reasoning_content");

    private final int most;

    Messages(int most) {
        this.most = most;
    }

    List<ChatMessage> read(Fields fields) {
        List<JsonNode> given = fields.array("messages", most);
        if (given == null) {
            throw Fields.missing("messages");
        }
        if (given.isEmpty()) {
            throw ApiException.invalid("messages", "invalid_value", "'messages' is empty: there is nothing to answer.");
        }
        List<ChatMessage> messages = new ArrayList<>();
        for (int i = 0; i < given.size(); i++) {
            String name = "messages[" + i + "]";
            if (!(given.get(i) instanceof ObjectNode message)) {
                throw Fields.wrongType(name, "an object", given.get(i));
            }
            messages.add(message(name, message));
        }
        return messages;
    }

    private static ChatMessage message(String name, ObjectNode object) {
        Fields fields = new Fields(object);
        String role = fields.text("role", null);
        if (role == null) {
            throw Fields.missing(name + ".role");
        }
        if (role.equals("tool") || role.equals("function")) {
            throw ApiException.unsupported(
                    name + ".role",
                    "Unsupported value: '" + name + ".role' is '" + role + "', and kvmerge calls no tools.");
        }
        if (!ROLES.contains(role)) {
            throw ApiException.invalid(
                    name + ".role",
                    "invalid_value",
                    "Invalid value: '" + role + "'. '" + name + ".role' is system, developer, user or assistant.");
        }
        object.fieldNames().forEachRemaining(field -> {
            if (!NAMES.contains(field)) {
                throw ApiException.invalid(
                        name + "." + field,
                        "unknown_parameter",
                        "Unrecognized request argument supplied: " + name + "." + field);
            }
        });
        for (String calls : List.of("tool_calls", "function_call", "audio")) {
            JsonNode value = fields.get(calls);
            if (value != null && !(value.isContainerNode() && value.isEmpty())) {
                throw ApiException.unsupported(
                        name + "." + calls,
                        "Unsupported parameter: '" + name + "." + calls + "': kvmerge reads text only.");
            }
        }
        JsonNode content = fields.get("content");
        if (content == null) {
            throw Fields.missing(name + ".content");
        }
        return new ChatMessage(role.equals("developer") ? "system" : role, text(name + ".content", content));
    }

    /** A string, or parts of type text, which are put together. */
    private static String text(String name, JsonNode content) {
        if (content.isTextual()) {
            return content.textValue();
        }
        if (!content.isArray()) {
            throw Fields.wrongType(name, "a string or an array of parts", content);
        }
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < content.size(); i++) {
            JsonNode part = content.get(i);
            String at = name + "[" + i + "]";
            if (!part.isObject()) {
                throw Fields.wrongType(at, "an object", part);
            }
            String type = part.path("type").asText("");
            if (!type.equals("text")) {
                throw ApiException.unsupported(
                        at + ".type",
                        "Unsupported value: '" + at + "' is of type '" + type + "'; kvmerge reads text only.");
            }
            if (!part.path("text").isTextual()) {
                throw Fields.missing(at + ".text");
            }
            text.append(part.get("text").textValue());
        }
        return text.toString();
    }
}
