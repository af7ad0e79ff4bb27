package dev.kvmerge.server;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.engine.Sampling;
import java.nio.file.Path;

/** What /props and /v1/models tell: the model, and what requests are answered with when they do not say. */
final class About {
    private final Inference.Facts facts;
    private final ServerOptions options;
    private final long created = System.currentTimeMillis() / 1000;

    About(Inference.Facts facts, ServerOptions options) {
        this.facts = facts;
        this.options = options;
    }

    /** The model's name: the alias, or its file's name without .gguf. */
    String name() {
        if (options.alias() != null) {
            return options.alias();
        }
        Path file = Path.of(facts.path()).getFileName();
        return String.valueOf(file).replaceFirst("\\.gguf$", "");
    }

    /** Most tokens of a prompt and its answer. */
    int context() {
        return options.context() > 0 ? options.context() : facts.trained();
    }

    ObjectNode models() {
        ObjectNode list = Json.object();
        list.put("object", "list");
        list.putArray("data").add(entry());
        return list;
    }

    ObjectNode model(String id) {
        if (!id.equals(name())) {
            throw ApiException.notFound("The model '" + id + "' does not exist: this server has '" + name() + "'.");
        }
        return entry();
    }

    private ObjectNode entry() {
        ObjectNode model = Json.object();
        model.put("id", name());
        model.put("object", "model");
        model.put("created", created);
        model.put("owned_by", "kvmerge");
        model.putObject("meta")
                .put("n_vocab", facts.vocabulary())
                .put("n_ctx_train", facts.trained())
                .put("n_embd", facts.embedding())
                .put("n_params", facts.parameters())
                .put("size", facts.bytes());
        return model;
    }

    ObjectNode props() {
        Sampling usual = Sampling.usual();
        ObjectNode props = Json.object();
        ObjectNode settings = props.putObject("default_generation_settings");
        settings.put("n_ctx", context());
        settings.putObject("params")
                .put("temperature", rounded(usual.temperature()))
                .put("top_k", usual.topK())
                .put("top_p", rounded(usual.topP()))
                .put("min_p", rounded(usual.minP()))
                .put("typical_p", rounded(usual.typicalP()))
                .put("repeat_penalty", rounded(usual.repeatPenalty()))
                .put("repeat_last_n", usual.repeatLastN())
                .put("presence_penalty", rounded(usual.presencePenalty()))
                .put("frequency_penalty", rounded(usual.frequencyPenalty()))
                .put("seed", usual.seed())
                .put("max_tokens", options.predict())
                .put("n_predict", options.predict());
        props.put("total_slots", options.slots());
        props.put("model_alias", name());
        props.put("model_path", facts.path());
        props.putObject("modalities").put("vision", false).put("audio", false);
        props.put("chat_template", facts.template());
        props.put("build_info", "kvmerge");
        props.putObject("kvmerge")
                .put("strategy", facts.strategy())
                .put("cells", facts.cells())
                .put("layers", facts.layers())
                .put("kv_heads", facts.kvHeads());
        return props;
    }

    /** The number as a person writes it. */
    private static double rounded(float f) {
        return Double.parseDouble(Float.toString(f));
    }
}
