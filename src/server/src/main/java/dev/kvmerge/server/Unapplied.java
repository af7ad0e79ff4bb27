package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;

/** Fields of OpenAI's and llama-server's requests that kvmerge does not act on. */
final class Unapplied {
    /** They change nothing of an answer: who asks, where it is kept, how it is paid for, hints for speed. */
    static final Set<String> IGNORED = Set.of(
            "metadata",
            "model",
            "n_discard",
            "n_keep",
            "parallel_tool_calls",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_retention",
            "return_progress",
            "return_tokens",
            "safety_identifier",
            "service_tier",
            "store",
            "timings_per_token",
            "user");

    /** They would change the answer, unless they say what is so anyway. */
    private static final Map<String, Predicate<JsonNode>> REFUSED = new LinkedHashMap<>();

    static {
        Predicate<JsonNode> one = value -> value.isNumber() && value.doubleValue() == 1;
        Predicate<JsonNode> zero = value -> value.isNumber() && value.doubleValue() == 0;
        Predicate<JsonNode> empty =
                value -> value.isTextual() ? value.textValue().isEmpty() : value.isContainerNode() && value.isEmpty();
        Predicate<JsonNode> no = value -> value.isBoolean() && !value.booleanValue();
        REFUSED.put("n", one);
        REFUSED.put("n_cmpl", one);
        REFUSED.put("best_of", one);
        REFUSED.put("suffix", empty);
        REFUSED.put("tools", empty);
        REFUSED.put("functions", empty);
        REFUSED.put("tool_choice", text("none", "auto"));
        REFUSED.put("function_call", text("none", "auto"));
        REFUSED.put(
                "modalities",
                value -> value.size() == 1 && "text".equals(value.get(0).textValue()));
        REFUSED.put("audio", value -> false);
        REFUSED.put("web_search_options", value -> false);
        REFUSED.put("reasoning_effort", text("none"));
        REFUSED.put("reasoning_format", text("none", "auto"));
        REFUSED.put("verbosity", text("medium"));
        REFUSED.put("add_generation_prompt", value -> value.isBoolean() && value.booleanValue());
        REFUSED.put("continue_final_message", no);
        REFUSED.put("chat_template", empty);
        REFUSED.put("chat_template_kwargs", empty);
        REFUSED.put("samplers", value -> false);
        REFUSED.put("mirostat", zero);
        REFUSED.put("dry_multiplier", zero);
        REFUSED.put("xtc_probability", zero);
        REFUSED.put("dynatemp_range", zero);
        REFUSED.put("top_n_sigma", value -> value.isNumber() && value.doubleValue() <= 0);
        REFUSED.put("n_indent", zero);
        REFUSED.put("min_keep", zero);
        REFUSED.put("lora", empty);
        REFUSED.put("t_max_predict_ms", value -> value.isNumber() && value.doubleValue() <= 0);
        REFUSED.put("post_sampling_probs", no);
    }

    private Unapplied() {}

    static Set<String> refused() {
        return REFUSED.keySet();
    }

    /** Refuses what would change the answer. */
    static void check(Fields fields) {
        REFUSED.forEach((name, harmless) -> {
            JsonNode value = fields.get(name);
            if (value != null && !harmless.test(value)) {
                throw ApiException.unsupported(
                        name,
                        "Unsupported parameter: '" + name + "' would change the answer, and kvmerge cannot do it.");
            }
        });
    }

    private static Predicate<JsonNode> text(String... values) {
        return value -> value.isTextual() && java.util.List.of(values).contains(value.textValue());
    }
}
