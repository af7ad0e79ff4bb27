package dev.kvmerge.server;

import io.helidon.common.buffers.DataReader;
import io.helidon.common.buffers.DataWriter;
import io.helidon.common.concurrency.limits.Limit;
import io.helidon.common.socket.HelidonSocket;
import io.helidon.common.socket.PeerInfo;
import io.helidon.webserver.ConnectionContext;
import io.helidon.webserver.ListenerContext;
import io.helidon.webserver.ProxyProtocolData;
import io.helidon.webserver.Router;
import io.helidon.webserver.http1.Http1ConnectionSelector;
import io.helidon.webserver.spi.ServerConnection;
import io.helidon.webserver.spi.ServerConnectionSelector;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.ExecutorService;

/**
 * A client's connection, read one piece ahead, so that its end is noticed while a request of it waits or is answered:
 * Helidon itself reads nothing meanwhile.
 */
final class Caller {
    private static final ScopedValue<Caller> CURRENT = ScopedValue.newInstance();

    private final DataReader from;
    private final HelidonSocket socket;
    private final long patienceMillis;
    private byte[] piece; // read and not yet asked for
    private boolean ended;
    private Runnable onGone;

    private Caller(ConnectionContext connection, Duration patience) {
        this.from = connection.dataReader();
        this.socket = connection.serverSocket();
        this.patienceMillis = patience.toMillis();
    }

    /** Helidon's HTTP/1.1 over such connections; a client may pause no longer than the patience within a request. */
    static ServerConnectionSelector selector(Http1ConnectionSelector http, Duration patience) {
        return new Selector(http, patience);
    }

    /** The connection of the request that this thread answers. */
    static Caller current() {
        return CURRENT.get();
    }

    /** Whether the client has closed the connection, or the half of it that it sends on. */
    synchronized boolean gone() {
        return ended && piece == null;
    }

    /**
     * Has something done once the client is gone, at once if it is; null for nothing more. It is done before this
     * returns or not at all: later the slot that it cancels may answer another client.
     */
    synchronized void onGone(Runnable action) {
        onGone = action;
        if (action != null && gone()) {
            action.run();
        }
    }

    /** Ends the connection, also under a write that waits for a client that does not read. */
    void hangUp() {
        socket.close();
    }

    private void readAhead() {
        try {
            do {
                from.ensureAvailable();
            } while (keep(from.readBuffer(from.available()).readBytes()));
        } catch (RuntimeException e) { // the end of the stream, or of the connection
            end();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            end();
        }
    }

    /** Whether to read on: nobody asks for what comes after the last request that is answered. */
    private synchronized boolean keep(byte[] read) throws InterruptedException {
        while (piece != null && !ended) {
            wait();
        }
        if (ended) {
            return false;
        }
        piece = read;
        notifyAll();
        return true;
    }

    private synchronized void end() {
        ended = true;
        notifyAll();
        if (piece == null && onGone != null) {
            onGone.run();
        }
    }

    /** Nothing more is asked for. */
    private synchronized void finish() {
        ended = true;
        piece = null;
        notifyAll();
    }

    /** The next piece, or null at the end. */
    private synchronized byte[] next() {
        long until = System.nanoTime() + patienceMillis * 1_000_000;
        try {
            while (piece == null && !ended) {
                long left = (until - System.nanoTime()) / 1_000_000;
                if (left <= 0) {
                    return null;
                }
                wait(left);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return null;
        }
        byte[] read = piece;
        piece = null;
        notifyAll();
        return read;
    }

    private record Selector(Http1ConnectionSelector http, Duration patience) implements ServerConnectionSelector {
        @Override
        public int bytesToIdentifyConnection() {
            return http.bytesToIdentifyConnection();
        }

        @Override
        public Support supports(io.helidon.common.buffers.BufferData data) {
            return http.supports(data);
        }

        @Override
        public java.util.Set<String> supportedApplicationProtocols() {
            return http.supportedApplicationProtocols();
        }

        @Override
        public ServerConnection connection(ConnectionContext context) {
            Caller caller = new Caller(context, patience);
            return new Connection(caller, http.connection(new Context(context, DataReader.create(caller::next))));
        }
    }

    private record Connection(Caller caller, ServerConnection http) implements ServerConnection {
        @Override
        public void handle(Limit limit) throws InterruptedException {
            Thread.ofVirtual().name("read-ahead").start(caller::readAhead);
            try {
                ScopedValue.where(CURRENT, caller).call(() -> {
                    http.handle(limit);
                    return null;
                });
            } finally {
                caller.finish();
            }
        }

        @Override
        public Duration idleTime() {
            return http.idleTime();
        }

        @Override
        public void close(boolean interrupt) {
            http.close(interrupt);
        }
    }

    /** The same connection with another reader. */
    private record Context(ConnectionContext of, DataReader dataReader) implements ConnectionContext {
        @Override
        public ListenerContext listenerContext() {
            return of.listenerContext();
        }

        @Override
        public ExecutorService executor() {
            return of.executor();
        }

        @Override
        public DataWriter dataWriter() {
            return of.dataWriter();
        }

        @Override
        public Router router() {
            return of.router();
        }

        @Override
        public Optional<ProxyProtocolData> proxyProtocolData() {
            return of.proxyProtocolData();
        }

        @Override
        public HelidonSocket serverSocket() {
            return of.serverSocket();
        }

        @Override
        public PeerInfo remotePeer() {
            return of.remotePeer();
        }

        @Override
        public PeerInfo localPeer() {
            return of.localPeer();
        }

        @Override
        public boolean isSecure() {
            return of.isSecure();
        }

        @Override
        public String socketId() {
            return of.socketId();
        }

        @Override
        public String childSocketId() {
            return of.childSocketId();
        }
    }
}
