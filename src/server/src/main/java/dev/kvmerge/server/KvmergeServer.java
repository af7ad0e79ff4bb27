package dev.kvmerge.server;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.Engine;
import io.helidon.http.DirectHandler;
import io.helidon.http.HeaderNames;
import io.helidon.http.ServerResponseHeaders;
import io.helidon.http.Status;
import io.helidon.webserver.WebServer;
import io.helidon.webserver.http.DirectHandlers;
import io.helidon.webserver.http1.Http1Config;
import io.helidon.webserver.http1.Http1ConnectionSelector;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.time.Duration;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Serves a model over HTTP, until it is closed. */
public final class KvmergeServer implements AutoCloseable {
    private static final int HEADERS = 64 << 10; // most bytes of them
    private static final Logger HELIDON = Logger.getLogger("io.helidon"); // held: loggers are collected

    private final Inference inference;
    private final Slots slots;
    private final ScheduledExecutorService clock;
    private final WebServer web;
    private final String host;
    private boolean closed;

    private KvmergeServer(
            Inference inference, Slots slots, ScheduledExecutorService clock, WebServer web, String host) {
        this.inference = inference;
        this.slots = slots;
        this.clock = clock;
        this.web = web;
        this.host = host;
    }

    /**
     * Serves an engine's model.
     *
     * @param engine with as many sessions as there are slots; it is closed with the server
     * @throws KvmergeException if the address is taken, or what the options name is not there
     */
    public static KvmergeServer start(Engine engine, ServerOptions options) {
        return start(new EngineInference(engine), options);
    }

    /**
     * Serves what an engine gives.
     *
     * @throws KvmergeException if the address is taken, or what the options name is not there
     */
    static KvmergeServer start(Inference inference, ServerOptions options) {
        return start(inference, options, Runtime.getRuntime().maxMemory());
    }

    /** As there, as if the JVM could take so many bytes. */
    static KvmergeServer start(Inference inference, ServerOptions options, long memory) {
        HELIDON.setLevel(Level.OFF); // it tells of every client that leaves
        Slots slots = new Slots(inference, options.slots(), options.queue());
        ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor(
                Thread.ofVirtual().name("clock").factory());
        Metrics metrics = new Metrics();
        About about = new About(inference.facts(), options);
        Completions completions = new Completions(inference, slots, metrics, clock, about.name(), options.timeout());
        InetAddress address = address(options.host());
        Handler handler = new Handler(
                memory, inference, options, slots, metrics, completions, about, new Origins(options, address));
        WebServer web = WebServer.builder()
                .address(address)
                .port(options.port())
                .shutdownHook(false)
                .shutdownGracePeriod(Duration.ofSeconds(1))
                .idleConnectionTimeout(Duration.ofMinutes(5))
                .directHandlers(directHandlers())
                .protocolsDiscoverServices(false)
                .addConnectionSelector(Caller.selector(
                        Http1ConnectionSelector.builder()
                                .config(Http1Config.builder()
                                        .maxHeadersSize(HEADERS)
                                        .validatePath(true)
                                        .build())
                                .build(),
                        options.timeout()))
                .routing(routing -> routing.any(handler::handle))
                .build();
        web.start();
        if (!web.isRunning()) { // Helidon tells its log why, and nobody else
            slots.close();
            clock.shutdownNow();
            throw new KvmergeException("cannot listen on " + options.host() + ":" + options.port()
                    + ": another program does, or the address is none of this machine's, or the port is kept for root."
                    + " Choose another --port or --host");
        }
        return new KvmergeServer(inference, slots, clock, web, options.host());
    }

    private static InetAddress address(String host) {
        try {
            return InetAddress.getByName(host);
        } catch (UnknownHostException e) {
            throw new KvmergeException.Usage("--host " + host + " is no address of this machine's");
        }
    }

    /** What is no HTTP is answered in JSON too. */
    private static DirectHandlers directHandlers() {
        DirectHandlers.Builder builder = DirectHandlers.builder();
        for (DirectHandler.EventType type : DirectHandler.EventType.values()) {
            builder.addHandler(type, KvmergeServer::refuse);
        }
        return builder.build();
    }

    private static DirectHandler.TransportResponse refuse(
            DirectHandler.TransportRequest request,
            DirectHandler.EventType type,
            Status status,
            ServerResponseHeaders headers,
            String message) {
        ApiException error = status.code() >= 500 && status.code() != Status.HTTP_VERSION_NOT_SUPPORTED_505.code()
                ? ApiException.internal("The server failed to answer.")
                : ApiException.garbled("The request is not HTTP/1.1 as this server takes it.");
        headers.set(HeaderNames.CONTENT_TYPE, "application/json; charset=utf-8");
        return DirectHandler.TransportResponse.builder()
                .status(status)
                .headers(headers)
                .entity(Json.bytes(error.body()))
                .keepAlive(false)
                .build();
    }

    /** The port that it listens on. */
    public int port() {
        return web.port();
    }

    /** Where a browser or a client finds it. */
    public String url() {
        return "http://" + (host.contains(":") ? "[" + host + "]" : host) + ":" + port();
    }

    /**
     * Answers what comes from now on, and what waits, with 503, and waits for what runs.
     *
     * @return whether all of it ended in time
     */
    public boolean drain(Duration patience) {
        return slots.drain(patience);
    }

    /** Ends what runs, and frees the port, the slots and the model. */
    @Override
    public synchronized void close() {
        if (closed) {
            return;
        }
        closed = true;
        slots.close();
        web.stop();
        clock.shutdownNow();
        inference.close();
    }
}
