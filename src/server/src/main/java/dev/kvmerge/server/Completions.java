package dev.kvmerge.server;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.GenerateOptions;
import dev.kvmerge.engine.Generation;
import io.helidon.webserver.http.ServerResponse;
import java.time.Duration;
import java.util.UUID;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;

/** Answers requests for text: takes a slot, has it answer, gives it back. */
final class Completions {
    /** A client that does not read its answer is hung up on so long after the time for it is over. */
    private static final Duration GRACE = Duration.ofSeconds(10);

    private final Inference inference;
    private final Slots slots;
    private final Metrics metrics;
    private final ScheduledExecutorService clock;
    private final String model;
    private final Duration timeout;
    private final AtomicLong tasks = new AtomicLong();

    Completions(
            Inference inference,
            Slots slots,
            Metrics metrics,
            ScheduledExecutorService clock,
            String model,
            Duration timeout) {
        this.inference = inference;
        this.slots = slots;
        this.metrics = metrics;
        this.clock = clock;
        this.model = model;
        this.timeout = timeout;
    }

    /**
     * Answers.
     *
     * @return the status that the client was told
     * @throws ApiException if it was told nothing yet
     * @throws Slots.GoneException if it is gone
     */
    int answer(Request request, ServerResponse response, Caller caller) {
        Answers answers = new Answers(request, id(request), model, inference);
        return request.stream()
                ? stream(request, answers, response, caller)
                : whole(request, answers, response, caller);
    }

    private static String id(Request request) {
        return (request.chat() ? "chatcmpl-" : "cmpl-")
                + UUID.randomUUID().toString().replace("-", "");
    }

    private int whole(Request request, Answers answers, ServerResponse response, Caller caller) {
        byte[] body;
        Slot slot = slots.take(request.prompt(), request.slot(), caller, timeout);
        try {
            Generation generation = generate(request, answers, slot, caller, () -> {}, text -> {});
            body = Json.bytes(answers.whole(generation, slot.id(), slot.look()));
        } finally {
            slots.give(slot);
        }
        Replies.json(response, 200, body);
        return 200;
    }

    private int stream(Request request, Answers answers, ServerResponse response, Caller caller) {
        EventStream events = new EventStream(response);
        Slot slot = slots.take(request.prompt(), request.slot(), caller, timeout);
        ScheduledFuture<?> late =
                clock.schedule(caller::hangUp, timeout.plus(GRACE).toMillis(), TimeUnit.MILLISECONDS);
        try {
            Runnable begin = () -> {
                if (!events.begun()) {
                    events.send(answers.first(slot.id()));
                }
            };
            Generation generation =
                    generate(request, answers, slot, caller, begin, text -> events.send(answers.text(text)));
            begin.run();
            Slot.Fill fill = slot.look();
            events.send(answers.last(generation, slot.id(), fill));
            if (request.includeUsage()) {
                events.send(answers.usage(generation, slot.id(), fill));
            }
            events.done();
        } catch (ApiException e) {
            if (!events.begun()) {
                throw e;
            }
            events.fail(e);
        } finally {
            late.cancel(false);
            slots.give(slot);
        }
        return 200;
    }

    /**
     * Has a slot answer.
     *
     * @param onReading called after each block that was read, and before each piece of text
     */
    private Generation generate(
            Request request, Answers answers, Slot slot, Caller caller, Runnable onReading, Consumer<String> onText) {
        Inference.Conversation conversation = slot.conversation();
        slot.begin(tasks.getAndIncrement());
        Runnable between = () -> {
            if (caller.gone()) { // it may have gone before there was anything to cancel
                throw new Slots.GoneException();
            }
            onReading.run();
        };
        GenerateOptions options =
                request.options().withProgress((done, all) -> between.run()).withOnLogprob(answers::token);
        caller.onGone(conversation::cancel);
        Generation generation;
        try {
            generation = conversation.answer(request.prompt(), options, text -> {
                slot.countPiece();
                between.run();
                onText.accept(text);
            });
        } catch (KvmergeException.Usage e) {
            throw ApiException.refused(e);
        } catch (KvmergeException e) {
            throw ApiException.internal(e.getMessage());
        } finally {
            caller.onGone(null);
        }
        metrics.generated(generation);
        if (generation.ended() == Generation.Ended.TIMEOUT) {
            throw ApiException.timeout("The answer was not whole within " + timeout.toSeconds() + " seconds.");
        }
        if (generation.ended() == Generation.Ended.CANCELLED) {
            if (caller.gone()) {
                throw new Slots.GoneException();
            }
            throw ApiException.unavailable("shutting_down", "The server is being shut down.");
        }
        return generation;
    }
}
