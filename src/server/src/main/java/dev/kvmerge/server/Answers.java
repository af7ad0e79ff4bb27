package dev.kvmerge.server;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.engine.Generation;
import dev.kvmerge.engine.TokenLogprob;
import java.time.Duration;

/** One answer in OpenAI's form, whole or in pieces, with llama-server's timings and kvmerge's cells beside it. */
final class Answers {
    private final Request request;
    private final String id;
    private final String model;
    private final PlacedLogprobs logprobs;
    private final long created = System.currentTimeMillis() / 1000;

    Answers(Request request, String id, String model, Inference inference) {
        this.logprobs = new PlacedLogprobs(inference::special);
        this.request = request;
        this.id = id;
        this.model = model;
    }

    ObjectNode whole(Generation generation, int slot, Slot.Fill fill) {
        ObjectNode answer = head(request.chat() ? "chat.completion" : "text_completion");
        ObjectNode choice = answer.putArray("choices").addObject();
        choice.put("index", 0);
        if (request.chat()) {
            ObjectNode message = choice.putObject("message");
            message.put("role", "assistant");
            message.put("content", generation.text());
            message.putNull("refusal");
        } else {
            choice.put("text", request.echo() ? request.prompt().text() + generation.text() : generation.text());
        }
        choice.set("logprobs", logprobs(generation.text()));
        choice.put("finish_reason", reason(generation));
        answer.set("usage", usage(generation));
        answer.set("timings", timings(generation));
        answer.set("kvmerge", kvmerge(slot, fill));
        return answer;
    }

    /** A stream's first piece: whose turn it is, and in which slot. */
    ObjectNode first(int slot) {
        ObjectNode piece = request.chat()
                ? piece("", null)
                : piece(request.echo() ? request.prompt().text() : "", null);
        if (request.chat()) {
            ((ObjectNode) piece.at("/choices/0/delta")).put("role", "assistant");
        }
        piece.putObject("kvmerge").put("slot", slot);
        return piece;
    }

    /** A stream's piece of text, with the log probabilities of the tokens that begin in it. */
    ObjectNode text(String text) {
        ObjectNode piece = piece(text, null);
        ((ObjectNode) piece.at("/choices/0")).set("logprobs", logprobs(text));
        return piece;
    }

    /** A token was generated, whose text comes later. */
    void token(TokenLogprob token) {
        logprobs.add(token);
    }

    private ObjectNode logprobs(String text) {
        return request.options().logprobs() < 0 ? null : logprobs.take(text, request.chat());
    }

    /** A stream's piece that says why it ends. */
    ObjectNode last(Generation generation, int slot, Slot.Fill fill) {
        ObjectNode piece = piece(null, reason(generation));
        piece.set("timings", timings(generation));
        piece.set("kvmerge", kvmerge(slot, fill));
        return piece;
    }

    /** A stream's piece after the last, where it is asked for. */
    ObjectNode usage(Generation generation, int slot, Slot.Fill fill) {
        ObjectNode piece = head(streamed());
        piece.putArray("choices");
        piece.set("usage", usage(generation));
        piece.set("timings", timings(generation));
        piece.set("kvmerge", kvmerge(slot, fill));
        return piece;
    }

    private String streamed() {
        return request.chat() ? "chat.completion.chunk" : "text_completion";
    }

    private ObjectNode piece(String text, String reason) {
        ObjectNode piece = head(streamed());
        ObjectNode choice = piece.putArray("choices").addObject();
        choice.put("index", 0);
        if (request.chat()) {
            ObjectNode delta = choice.putObject("delta");
            if (text != null) {
                delta.put("content", text);
            }
        } else {
            choice.put("text", text == null ? "" : text);
        }
        choice.putNull("logprobs");
        choice.put("finish_reason", reason);
        if (request.includeUsage()) {
            piece.putNull("usage");
        }
        return piece;
    }

    private ObjectNode head(String object) {
        ObjectNode head = Json.object();
        head.put("id", id);
        head.put("object", object);
        head.put("created", created);
        head.put("model", model);
        head.put("system_fingerprint", "kvmerge");
        return head;
    }

    private static String reason(Generation generation) {
        return generation.ended() == Generation.Ended.LENGTH ? "length" : "stop";
    }

    private static ObjectNode usage(Generation generation) {
        ObjectNode usage = Json.object();
        usage.put("prompt_tokens", generation.promptTokens());
        usage.put("completion_tokens", generation.tokens().length);
        usage.put("total_tokens", generation.promptTokens() + generation.tokens().length);
        usage.putObject("prompt_tokens_details")
                .put("cached_tokens", generation.promptTokens() - generation.readTokens());
        return usage;
    }

    private static ObjectNode timings(Generation generation) {
        ObjectNode timings = Json.object();
        timings.put("cache_n", generation.promptTokens() - generation.readTokens());
        timings(timings, "prompt", generation.readTokens(), generation.promptTime());
        timings(timings, "predicted", generation.tokens().length, generation.generationTime());
        return timings;
    }

    private static void timings(ObjectNode timings, String what, int tokens, Duration time) {
        double millis = time.toNanos() / 1e6;
        timings.put(what + "_n", tokens);
        timings.put(what + "_ms", millis);
        timings.put(what + "_per_token_ms", tokens == 0 ? 0 : millis / tokens);
        timings.put(what + "_per_second", millis == 0 ? 0 : tokens / millis * 1000);
    }

    private static ObjectNode kvmerge(int slot, Slot.Fill fill) {
        ObjectNode kvmerge = Json.object();
        kvmerge.put("slot", slot);
        kvmerge.put("cells", fill.cells());
        kvmerge.put("allocated", fill.allocated());
        kvmerge.put("mib", fill.mib());
        return kvmerge;
    }
}
