package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Sampling;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Reads requests: every field checked by name, type and range, before anything is asked of the engine. */
final class Requests {
    private static final int MOST_STOPS = 64;
    private static final int MOST_CHAT_LOGPROBS = 20;
    private static final int MOST_LOGPROBS = 5;
    private static final long MOST_SEED = 0xFFFF_FFFEL;
    /** Fields of both kinds of completions. */
    static final Set<String> BOTH = Set.of(
            "cache_prompt",
            "frequency_penalty",
            "grammar",
            "id_slot",
            "ignore_eos",
            "json_schema",
            "logit_bias",
            "logprobs",
            "max_tokens",
            "min_p",
            "n_predict",
            "presence_penalty",
            "repeat_last_n",
            "repeat_penalty",
            "response_format",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "temperature",
            "top_k",
            "top_p",
            "typical_p");

    private static final Set<String> CHAT = names("messages", "max_completion_tokens", "top_logprobs");
    private static final Set<String> COMPLETION = names("prompt", "echo");

    private final Inference inference;
    private final ServerOptions options;
    private final int context; // most tokens of prompt and answer

    Requests(Inference inference, ServerOptions options, int context) {
        this.inference = inference;
        this.options = options;
        this.context = context;
    }

    private static Set<String> names(String... own) {
        Set<String> names = new HashSet<>(BOTH);
        names.addAll(Unapplied.IGNORED);
        names.addAll(Unapplied.refused());
        names.addAll(List.of(own));
        return names;
    }

    Request chat(ObjectNode body) {
        Fields fields = new Fields(body);
        fields.only(CHAT);
        Unapplied.check(fields);
        fields.text("model", "");
        List<ChatMessage> messages = new Messages(options.messages()).read(fields);
        boolean logprobs = fields.flag("logprobs", false);
        int top = fields.integer("top_logprobs", 0, 0, MOST_CHAT_LOGPROBS);
        if (top > 0 && !logprobs) {
            throw ApiException.invalid(
                    "top_logprobs", "invalid_value", "'top_logprobs' goes with 'logprobs': true only.");
        }
        int most = most(fields, "max_completion_tokens", "max_tokens", "n_predict");
        GenerateOptions generate = generate(fields, logprobs ? top : -1);
        return request(true, fields, conversation(messages, cached(fields)), generate, most, "messages");
    }

    Request completion(ObjectNode body) {
        Fields fields = new Fields(body);
        fields.only(COMPLETION);
        Unapplied.check(fields);
        fields.text("model", "");
        boolean echo = fields.flag("echo", false);
        int logprobs = fields.integer("logprobs", -1, 0, MOST_LOGPROBS);
        if (echo && logprobs >= 0) {
            throw ApiException.unsupported(
                    "logprobs", "Unsupported parameter: 'logprobs' with 'echo': the prompt's own are not kept.");
        }
        int most = most(fields, "max_tokens", "n_predict");
        GenerateOptions generate = generate(fields, logprobs);
        return request(false, fields, prompt(fields), generate, most, "prompt");
    }

    private static boolean cached(Fields fields) {
        return fields.flag("cache_prompt", true);
    }

    private Request request(
            boolean chat, Fields fields, Prompt prompt, GenerateOptions generate, int most, String param) {
        int length = prompt.tokens().length;
        if (length == 0) {
            throw ApiException.invalid(
                    param, "invalid_value", "'" + param + "' has no tokens: there is nothing to read.");
        }
        if (length >= context) {
            throw ApiException.invalid(
                    param,
                    "context_length_exceeded",
                    "This server's maximum context length is " + context + " tokens. However, your " + param
                            + " resulted in " + length + " tokens. Please reduce the length of the " + param + ".");
        }
        Fields stream = fields.object("stream_options");
        boolean streamed = fields.flag("stream", false);
        if (stream != null) {
            stream.only(Set.of("include_usage", "include_obfuscation"));
            if (!streamed) {
                throw ApiException.invalid(
                        "stream_options", "invalid_value", "'stream_options' goes with 'stream': true only.");
            }
        }
        int room = context - length;
        return new Request(
                chat,
                prompt,
                generate.withMaxTokens(most < 0 ? room : Math.min(most, room)),
                streamed,
                stream != null && stream.flag("include_usage", false),
                !chat && fields.flag("echo", false),
                fields.integer("id_slot", Slots.ANY, Slots.ANY, options.slots() - 1));
    }

    /** The limit of tokens under whichever of these names it is given; -1 for none. */
    private int most(Fields fields, String... names) {
        for (String name : names) {
            if (fields.has(name)) {
                return fields.integer(name, -1, -1, Integer.MAX_VALUE); // -1 as llama-server has it: as many as fit
            }
        }
        return options.predict();
    }

    private Prompt conversation(List<ChatMessage> messages, boolean cached) {
        try {
            Inference.Written written = inference.write(messages);
            return new Prompt(messages, written.text(), written.tokens(), cached);
        } catch (KvmergeException e) {
            throw ApiException.invalid("messages", "invalid_value", e.getMessage());
        }
    }

    private Prompt prompt(Fields fields) {
        boolean cached = cached(fields);
        JsonNode prompt = fields.get("prompt");
        if (prompt == null) {
            throw Fields.missing("prompt");
        }
        if (prompt.isArray() && prompt.size() == 1 && !prompt.get(0).isNumber()) {
            prompt = prompt.get(0); // one prompt of a list
        }
        if (prompt.isTextual()) {
            String text = prompt.textValue();
            return new Prompt(null, text, inference.tokenize(text, true, true), cached);
        }
        if (!prompt.isArray()) {
            throw Fields.wrongType("prompt", "a string or an array of tokens", prompt);
        }
        if (!prompt.isEmpty() && !prompt.get(0).isNumber()) {
            throw ApiException.unsupported(
                    "prompt", "Unsupported value: 'prompt' is a list of several prompts; send one a request.");
        }
        int[] tokens = new int[prompt.size()];
        for (int i = 0; i < tokens.length; i++) {
            tokens[i] = Fields.token(
                    "prompt[" + i + "]", prompt.get(i), inference.facts().vocabulary());
        }
        return new Prompt(null, null, tokens, cached);
    }

    private GenerateOptions generate(Fields fields, int logprobs) {
        return GenerateOptions.usual()
                .withStop(stops(fields))
                .withSampling(sampling(fields))
                .withTimeout(options.timeout())
                .withIgnoreEos(fields.flag("ignore_eos", false))
                .withLogprobs(logprobs);
    }

    private static List<String> stops(Fields fields) {
        JsonNode stop = fields.get("stop");
        if (stop == null) {
            return List.of();
        }
        List<String> stops = new ArrayList<>();
        for (JsonNode one : stop.isTextual() ? List.of(stop) : fields.array("stop", MOST_STOPS)) {
            if (!one.isTextual()) {
                throw Fields.wrongType("stop", "a string or an array of strings", one);
            }
            if (one.textValue().isEmpty()) {
                throw ApiException.invalid(
                        "stop", "invalid_value", "'stop' has an empty string, which every text has.");
            }
            stops.add(one.textValue());
        }
        return stops;
    }

    private Sampling sampling(Fields fields) {
        Sampling usual = Sampling.usual();
        return new Sampling(
                fields.number("temperature", usual.temperature(), 0, 100),
                fields.integer("top_k", usual.topK(), 0, Integer.MAX_VALUE),
                fields.number("top_p", usual.topP(), 0, 1),
                fields.number("min_p", usual.minP(), 0, 1),
                fields.number("typical_p", usual.typicalP(), 0, 1),
                fields.number("repeat_penalty", usual.repeatPenalty(), 0.001, 1000),
                fields.integer("repeat_last_n", usual.repeatLastN(), 0, Sampling.MOST_REPEAT_LAST_N),
                fields.number("presence_penalty", usual.presencePenalty(), -2, 2),
                fields.number("frequency_penalty", usual.frequencyPenalty(), -2, 2),
                fields.whole("seed", Sampling.RANDOM_SEED, Sampling.RANDOM_SEED, MOST_SEED),
                Grammars.of(fields),
                logitBias(fields));
    }

    /** {"token": bias}, as OpenAI has it, or [[token, bias]], as llama-server does; false forbids a token. */
    private Map<Integer, Float> logitBias(Fields fields) {
        JsonNode given = fields.get("logit_bias");
        Map<Integer, Float> biases = new HashMap<>();
        if (given == null) {
            return biases;
        }
        int vocabulary = inference.facts().vocabulary();
        if (given.isObject()) {
            given.properties().forEach(e -> {
                int token;
                try {
                    token = Integer.parseInt(e.getKey());
                } catch (NumberFormatException notOne) {
                    token = -1;
                }
                put(biases, token, e.getKey(), e.getValue(), vocabulary);
            });
        } else if (given.isArray()) {
            for (JsonNode pair : given) {
                if (!pair.isArray() || pair.size() != 2 || !pair.get(0).canConvertToInt()) {
                    throw Fields.wrongType("logit_bias", "pairs of a token and a bias", pair);
                }
                put(biases, pair.get(0).intValue(), pair.get(0).toString(), pair.get(1), vocabulary);
            }
        } else {
            throw Fields.wrongType("logit_bias", "an object", given);
        }
        return biases;
    }

    private static void put(Map<Integer, Float> biases, int token, String named, JsonNode value, int vocabulary) {
        if (token < 0 || token >= vocabulary) {
            throw ApiException.invalid(
                    "logit_bias",
                    "invalid_value",
                    "Invalid key in 'logit_bias': '" + named + "' is no token; they are 0 to " + (vocabulary - 1)
                            + ".");
        }
        if (value.isBoolean() && !value.booleanValue()) {
            biases.put(token, Float.NEGATIVE_INFINITY);
            return;
        }
        if (!value.isNumber()) {
            throw Fields.wrongType("logit_bias." + token, "a number", value);
        }
        if (Math.abs(value.doubleValue()) > 100) {
            throw Fields.outOfRange("logit_bias." + token, value, "-100 to 100");
        }
        biases.put(token, value.floatValue());
    }
}
