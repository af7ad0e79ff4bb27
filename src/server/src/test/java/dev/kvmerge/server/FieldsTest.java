package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Every field of a request that cannot be is refused by its name. */
@Tag("fast")
class FieldsTest extends Refusing {
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "temperature | \"hot\" | invalid_type",
                "temperature | -0.1 | invalid_value",
                "temperature | true | invalid_type",
                "top_p | 1.5 | invalid_value",
                "min_p | [] | invalid_type",
                "top_k | 1.5 | invalid_type",
                "top_k | -1 | invalid_value",
                "seed | 99999999999999999999999999 | invalid_value",
                "max_tokens | \"5\" | invalid_type",
                "max_tokens | -5 | invalid_value",
                "max_completion_tokens | 1e99 | invalid_value",
                "stream | 1 | invalid_type",
                "stream | \"true\" | invalid_type",
                "stop | 3 | invalid_type",
                "stop | [\"\"] | invalid_value",
                "stop | [1] | invalid_type",
                "logprobs | 5 | invalid_type",
                "top_logprobs | 2 | invalid_value",
                "top_logprobs | 21 | invalid_value",
                "presence_penalty | 3 | invalid_value",
                "logit_bias | 1 | invalid_type",
                "logit_bias | {\"x\":1} | invalid_value",
                "logit_bias | {\"999\":1} | invalid_value",
                "logit_bias | {\"9\":101} | invalid_value",
                "logit_bias | {\"9\":\"a\"} | invalid_type",
                "stream_options | {\"include_usage\":true} | invalid_value",
                "id_slot | 1 | invalid_value",
                "model | 4 | invalid_type",
                "n | 2 | unsupported_parameter",
                "tools | [{\"type\":\"function\"}] | unsupported_parameter",
                "tool_choice | \"required\" | unsupported_parameter",
                "functions | [{}] | unsupported_parameter",
                "modalities | [\"text\",\"audio\"] | unsupported_parameter",
                "audio | {} | unsupported_parameter",
                "reasoning_effort | \"high\" | unsupported_parameter",
                "web_search_options | {} | unsupported_parameter",
                "mirostat | 2 | unsupported_parameter",
                "samplers | [\"top_k\"] | unsupported_parameter",
                "chat_template_kwargs | {\"a\":1} | unsupported_parameter",
                "temprature | 1 | unknown_parameter",
                "messages2 | [] | unknown_parameter",
                "response_format | \"json\" | invalid_type",
                "response_format | {\"type\":\"xml\"} | unsupported_parameter",
                "response_format | {} | missing_required_parameter",
                "json_schema | {\"type\":[\"string\",\"null\"],\"pattern\":\"a\"} | unsupported_parameter",
                "json_schema | {\"type\":[\"integer\",\"null\"],\"minimum\":1} | unsupported_parameter",
                "json_schema | {\"type\":[\"integer\",\"null\"],\"maxItems\":1} | unsupported_parameter"
            })
    void aFieldThatCannotBeIsNamed(String field, String value, String code) throws Exception {
        JsonNode error = error(client.post(CHAT, "{" + HELLO + ",\"" + field + "\":" + value + "}"), 400);
        assertTrue(error.get("param").asText().startsWith(field), error.toString());
        assertEquals(code, error.get("code").asText(), error.toString());
        assertTrue(error.get("message").asText().contains(field), error.toString());
        assertEquals("invalid_request_error", error.get("type").asText());
    }

    /** What clients send and what says nothing new is taken. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "temperature | null",
                "n | 1",
                "user | \"me\"",
                "metadata | {\"a\":\"b\"}",
                "store | false",
                "service_tier | \"auto\"",
                "tools | []",
                "tool_choice | \"none\"",
                "parallel_tool_calls | true",
                "modalities | [\"text\"]",
                "logit_bias | {}",
                "logit_bias | [[97,1.5],[98,false]]",
                "stop | null",
                "response_format | {\"type\":\"text\"}",
                "max_tokens | 5.0",
                "mirostat | 0",
                "json_schema | {\"type\":[\"string\",\"array\",\"null\"],\"maxLength\":3,\"minItems\":1}",
                "stop | \"x\"",
                "safety_identifier | \"x\"",
                "prompt_cache_key | \"x\"",
                "prediction | {\"type\":\"content\"}"
            })
    void aFieldThatChangesNothingIsTaken(String field, String value) throws Exception {
        JsonNode answer = client.post(200, CHAT, "{" + HELLO + ",\"" + field + "\":" + value + "}");
        assertEquals("hi", answer.at("/choices/0/message/content").asText());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "null | messages",
                "[] | messages",
                "\"hi\" | messages",
                "[1] | messages[0]",
                "[{}] | messages[0].role",
                "[{\"role\":\"king\",\"content\":\"x\"}] | messages[0].role",
                "[{\"role\":\"tool\",\"content\":\"x\"}] | messages[0].role",
                "[{\"role\":\"user\"}] | messages[0].content",
                "[{\"role\":\"user\",\"content\":7}] | messages[0].content",
                "[{\"role\":\"user\",\"content\":[7]}] | messages[0].content[0]",
                "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}] | messages[0].content[0].type",
                "[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}] | messages[0].content[0].text",
                "[{\"role\":\"user\",\"content\":\"x\",\"contnt\":1}] | messages[0].contnt",
                "[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]}] | messages[0].tool_calls",
                "[{\"role\":\"user\",\"content\":\"refuse me\"}] | messages"
            })
    void aMessageThatCannotBeIsNamed(String messages, String param) throws Exception {
        assertEquals(
                param,
                error(client.post(CHAT, "{\"messages\":" + messages + "}"), 400)
                        .get("param")
                        .asText());
    }

    @Test
    void partsOfTextAreOneText() throws Exception {
        JsonNode answer = client.post(
                200,
                CHAT,
                "{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"},"
                        + "{\"role\":\"user\",\"name\":\"n\",\"content\":"
                        + "[{\"type\":\"text\",\"text\":\"say:\"},{\"type\":\"text\",\"text\":\"both\"}]}]}");
        assertEquals("both", answer.at("/choices/0/message/content").asText());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "{} | prompt",
                "{\"prompt\":null} | prompt",
                "{\"prompt\":\"\"} | prompt",
                "{\"prompt\":[]} | prompt",
                "{\"prompt\":[\"a\",\"b\"]} | prompt",
                "{\"prompt\":[1,999]} | prompt[1]",
                "{\"prompt\":[1,\"a\"]} | prompt[1]",
                "{\"prompt\":{}} | prompt",
                "{\"prompt\":\"a\",\"suffix\":\"b\"} | suffix",
                "{\"prompt\":\"a\",\"best_of\":2} | best_of",
                "{\"prompt\":\"a\",\"logprobs\":6} | logprobs",
                "{\"prompt\":\"a\",\"logprobs\":true} | logprobs",
                "{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1} | logprobs",
                "{\"prompt\":\"a\",\"messages\":[]} | messages"
            })
    void aCompletionThatCannotBeIsRefused(String body, String param) throws Exception {
        assertEquals(
                param,
                error(client.post("/v1/completions", body), 400).get("param").asText());
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "/tokenize | {} | content",
                "/tokenize | {\"content\":1} | content",
                "/tokenize | {\"content\":\"a\",\"parse_special\":1} | parse_special",
                "/tokenize | {\"content\":\"a\",\"x\":1} | x",
                "/detokenize | {} | tokens",
                "/detokenize | {\"tokens\":[-1]} | tokens[0]",
                "/detokenize | {\"tokens\":[1,\"a\"]} | tokens[1]",
                "/slots/0?action=save | {} | filename",
                "/slots/0?action=save | {\"filename\":\"../x\"} | filename",
                "/slots/0?action=save | {\"filename\":\".x\"} | filename",
                "/slots/0?action=save | {\"filename\":\"\"} | filename",
                "/slots/0?action=fly | {} | action",
                "/slots/0 | {} | action"
            })
    void theOtherEndpointsNameWhatTheyRefuse(String path, String body, String param) throws Exception {
        assertEquals(param, error(client.post(path, body), 400).get("param").asText());
    }
}
