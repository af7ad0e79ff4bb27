package dev.kvmerge.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import io.helidon.common.buffers.DataReader;
import io.helidon.http.HeaderValues;
import io.helidon.http.Status;
import io.helidon.webserver.CloseConnectionException;
import io.helidon.webserver.ServerConnectionException;
import io.helidon.webserver.http.ServerRequest;
import io.helidon.webserver.http.ServerResponse;
import java.io.UncheckedIOException;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Every request comes here: who may ask, what for, and what is told when it cannot be. */
final class Handler {
    private static final System.Logger LOG = System.getLogger(Handler.class.getName());
    private static final Pattern SLOT = Pattern.compile("/slots/([0-9]{1,9})(/cells)?");
    private static final Map<String, String> METHODS = Map.ofEntries(
            Map.entry("/health", "GET"),
            Map.entry("/v1/health", "GET"),
            Map.entry("/models", "GET"),
            Map.entry("/v1/models", "GET"),
            Map.entry("/props", "GET"),
            Map.entry("/slots", "GET"),
            Map.entry("/metrics", "GET"),
            Map.entry("/tokenize", "POST"),
            Map.entry("/detokenize", "POST"),
            Map.entry("/chat/completions", "POST"),
            Map.entry("/v1/chat/completions", "POST"),
            Map.entry("/completions", "POST"),
            Map.entry("/v1/completions", "POST"));

    private final ServerOptions options;
    private final Bodies bodies;
    private final Room reading; // in KiB of requests; what they are read into takes up to thirty times as much
    private final Origins origins;
    private final Keys keys;
    private final Slots slots;
    private final Metrics metrics;
    private final Requests requests;
    private final Completions completions;
    private final SlotRequests slotRequests;
    private final Tokens tokens;
    private final About about;

    /** @param memory bytes that the JVM may take: of these bodies get their share */
    Handler(
            long memory,
            Inference inference,
            ServerOptions options,
            Slots slots,
            Metrics metrics,
            Completions completions,
            About about,
            Origins origins) {
        this.options = options;
        long most = Math.max(options.body(), memory / 64);
        this.bodies = new Bodies(options.body(), memory / 8, options.timeout());
        this.reading = new Room((int) Math.min(most >> 10, Integer.MAX_VALUE), options.timeout());
        this.origins = origins;
        this.keys = new Keys(options.apiKeys());
        this.slots = slots;
        this.metrics = metrics;
        this.completions = completions;
        this.about = about;
        this.requests = new Requests(inference, options, about.context());
        this.slotRequests = new SlotRequests(inference, slots, options, about.context());
        this.tokens = new Tokens(inference);
    }

    void handle(ServerRequest request, ServerResponse response) {
        int status;
        try {
            status = answer(request, response);
        } catch (ApiException e) {
            status = e.status();
            Replies.error(response, e);
            if (e.endsConnection()) {
                metrics.answered(status);
                throw new CloseConnectionException(e.getMessage());
            }
        } catch (KvmergeException.Usage e) { // of what was asked, as a text that the model has no tokens for
            if (response.isSent()) {
                throw e;
            }
            status = 400;
            Replies.error(response, ApiException.refused(e));
        } catch (Slots.GoneException
                | UncheckedIOException
                | ServerConnectionException
                | DataReader.InsufficientDataAvailableException e) {
            metrics.gone();
            Caller.current().hangUp();
            throw new CloseConnectionException("the client is gone");
        } catch (RuntimeException | Error e) {
            LOG.log(System.Logger.Level.ERROR, "a request failed", e);
            if (response.isSent()) {
                throw e;
            }
            status = 500;
            Replies.error(response, ApiException.internal("The server failed to answer; its log says why."));
        }
        metrics.answered(status);
        if (request.headers().containsToken(HeaderValues.CONNECTION_CLOSE)) { // Helidon waits for the client to close
            throw new CloseConnectionException("the client asked for it");
        }
    }

    /** The status that the client was told. */
    private int answer(ServerRequest request, ServerResponse response) {
        origins.check(request.headers(), response);
        String method = request.prologue().method().text();
        String path = request.path().rawPath();
        if (method.equals("OPTIONS")) { // browsers ask without a key
            Origins.preflight(request.headers(), response);
            return 200;
        }
        if (path.endsWith("/health") && METHODS.containsKey(path)) {
            if (method.equals("HEAD")) { // as a container's health check may ask
                response.status(Status.create(slots.draining() ? 503 : 200)).send();
                return slots.draining() ? 503 : 200;
            }
            check(method, path, "GET");
            return health(response);
        }
        if (method.equals("GET") && Page.send(path, response)) {
            return 200;
        }
        keys.check(request.headers());
        String allowed = METHODS.get(path);
        if (allowed != null) {
            check(method, path, allowed);
        }
        return switch (path) {
            case "/chat/completions", "/v1/chat/completions" -> complete(read(request, requests::chat), response);
            case "/completions", "/v1/completions" -> complete(read(request, requests::completion), response);
            case "/models", "/v1/models" -> json(response, about.models());
            case "/props" -> json(response, about.props());
            case "/tokenize" -> json(response, read(request, tokens::tokenize));
            case "/detokenize" -> json(response, read(request, tokens::detokenize));
            case "/metrics" -> metrics(response);
            case "/slots" -> slots(request, response);
            default -> other(method, path, request, response);
        };
    }

    private static int json(ServerResponse response, JsonNode body) {
        Replies.json(response, body);
        return 200;
    }

    private static void check(String method, String path, String allowed) {
        if (!method.equals(allowed)) {
            throw ApiException.method(method, path, allowed);
        }
    }

    private int complete(Request request, ServerResponse response) {
        return completions.answer(request, response, Caller.current());
    }

    private int other(String method, String path, ServerRequest request, ServerResponse response) {
        String models = "/v1/models/";
        if (path.startsWith(models)) {
            check(method, path, "GET");
            return json(response, about.model(request.path().path().substring(models.length())));
        }
        Matcher slot = SLOT.matcher(path);
        if (!slot.matches()) {
            throw ApiException.notFound("There is nothing at " + path + ".");
        }
        int id = Integer.parseInt(slot.group(1));
        if (slot.group(2) != null) {
            check(method, path, "GET");
            Replies.json(response, 200, slotRequests.cells(id, number(request, "layer"), number(request, "head")));
            return 200;
        }
        check(method, path, "POST");
        String action = query(request, "action").orElse(null);
        ObjectNode body = "erase".equals(action) ? Json.object() : read(request, read -> read);
        return json(response, slotRequests.act(id, action, body));
    }

    private int health(ServerResponse response) {
        if (slots.draining()) {
            throw ApiException.unavailable("shutting_down", "The server is being shut down.");
        }
        return json(response, Json.object().put("status", "ok"));
    }

    private int slots(ServerRequest request, ServerResponse response) {
        var list = slotRequests.list();
        if (query(request, "fail_on_no_slot").isPresent() && slots.working().size() == slots.size()) {
            throw ApiException.unavailable("no_slot", "All slots are at work.");
        }
        return json(response, list);
    }

    private int metrics(ServerResponse response) {
        if (!options.metrics()) {
            throw ApiException.notEnabled("This server does not tell metrics. Start it with --metrics.");
        }
        long cells = 0;
        long allocated = 0;
        for (Slot slot : slots.all()) {
            cells += slot.fill().cells();
            allocated += slot.fill().allocated();
        }
        String text = metrics.text(slots.working().size(), slots.waiting(), cells, allocated);
        Replies.text(response, "text/plain; version=0.0.4; charset=utf-8", text);
        return 200;
    }

    private static Optional<String> query(ServerRequest request, String name) {
        return request.query().contains(name) ? request.query().first(name).asOptional() : Optional.empty();
    }

    private static int number(ServerRequest request, String name) {
        Optional<String> text = query(request, name).filter(value -> !value.isEmpty());
        if (text.isEmpty()) {
            return -1;
        }
        if (!text.get().matches("[0-9]{1,9}")) {
            throw ApiException.invalid(
                    name,
                    "invalid_type",
                    "Invalid type for '" + name + "': expected an integer, but got '" + text.get() + "'.");
        }
        return Integer.parseInt(text.get());
    }

    /** What a request says, read while there is room for it. */
    private <T> T read(ServerRequest request, Function<ObjectNode, T> reader) {
        if (slots.draining()) {
            throw ApiException.unavailable("shutting_down", "The server is being shut down.");
        }
        OptionalLong length = request.headers().contentLength();
        if (length.orElse(0) > options.body()) {
            throw ApiException.tooLarge(options.body());
        }
        return bodies.with(request, body -> reading.with(body.length >> 10, () -> reader.apply(Json.parse(body))));
    }
}
