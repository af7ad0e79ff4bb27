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

    /** Has something done once the client is gone, at once if it is; null for nothing more. */
    void onGone(Runnable action) {
        synchronized (this) {
            onGone = action;
            if (!gone()) {
                return;
            }
        }
        if (action != null) {
            action.run();
        }
    }

    /** Ends the connection, also under a write that waits for a client that does not read. */
    void hangUp() {
        socket.close();
    }

    private void readAhead() {
        try {
            while (true) {
                from.ensureAvailable();
                keep(from.readBuffer(from.available()).readBytes());
            }
        } catch (RuntimeException e) { // the end of the stream, or of the connection
            end();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            end();
        }
    }

    private synchronized void keep(byte[] read) throws InterruptedException {
        while (piece != null) {
            wait();
        }
        piece = read;
        notifyAll();
    }

    private void end() {
        Runnable action;
        synchronized (this) {
            ended = true;
            notifyAll();
            action = piece == null ? onGone : null;
        }
        if (action != null) {
            action.run();
        }
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
            ScopedValue.where(CURRENT, caller).call(() -> {
                http.handle(limit);
                return null;
            });
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
