package dev.kvmerge.server;

import io.helidon.http.HeaderName;
import io.helidon.http.HeaderNames;
import io.helidon.http.ServerRequestHeaders;
import io.helidon.webserver.http.ServerResponse;
import java.net.InetAddress;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * Which web pages may ask. A browser lets every page send requests to 127.0.0.1, and says which it was; a page may also
 * have its own name lead to the server's address, and be of the same origin then.
 */
final class Origins {
    private static final HeaderName ORIGIN = HeaderNames.create("Origin");
    private static final HeaderName ALLOW_ORIGIN = HeaderNames.create("Access-Control-Allow-Origin");
    private static final HeaderName ALLOW_METHODS = HeaderNames.create("Access-Control-Allow-Methods");
    private static final HeaderName ALLOW_HEADERS = HeaderNames.create("Access-Control-Allow-Headers");
    private static final HeaderName ASKED_HEADERS = HeaderNames.create("Access-Control-Request-Headers");

    private static final List<String> LOCAL_ENDS = List.of(".localhost", ".local", ".internal", ".lan", ".home.arpa");

    private final ServerOptions options;
    private final boolean every;
    private final boolean byName; // whether the name that the server is asked by must be one of its own
    private final boolean loopback; // nobody on another machine can ask

    Origins(ServerOptions options, InetAddress address) {
        this.options = options;
        this.every = options.origins().contains("*");
        this.byName = !every && options.apiKeys().isEmpty();
        this.loopback = address.isLoopbackAddress();
    }

    /**
     * Says to the browser that the page may read the answer, where it is another's that may.
     *
     * @throws ApiException 403 if it may not ask
     */
    void check(ServerRequestHeaders headers, ServerResponse response) {
        String host = headers.first(HeaderNames.HOST).orElse("").toLowerCase(Locale.ROOT);
        if (byName && !host.isEmpty() && !own(host)) {
            throw ApiException.forbidden(
                    "host_not_allowed",
                    "This server is not '" + host + "': ask " + (loopback ? "127.0.0.1 or localhost" : "its address")
                            + ", or start it with --host, with --api-key, or with --cors-origin http://" + host + ".");
        }
        Optional<String> origin = headers.first(ORIGIN).map(o -> o.toLowerCase(Locale.ROOT));
        if (origin.isEmpty() || authority(origin.get()).equals(host)) {
            return;
        }
        if (!every && !options.origins().contains(origin.get())) {
            throw ApiException.forbidden(
                    "origin_not_allowed",
                    "Pages of '" + origin.get() + "' may not ask this server. Start it with --cors-origin "
                            + origin.get() + " to let them.");
        }
        response.header(ALLOW_ORIGIN, origin.get());
        response.header(HeaderNames.VARY, "Origin");
    }

    /** Answers a browser that asks beforehand what a page may send. */
    static void preflight(ServerRequestHeaders headers, ServerResponse response) {
        response.header(ALLOW_METHODS, "GET, POST");
        headers.first(ASKED_HEADERS).ifPresent(asked -> response.header(ALLOW_HEADERS, asked));
        Replies.text(response, "text/html", "");
    }

    private boolean own(String host) {
        String name = host.replaceFirst(":[0-9]*$", "");
        return name.equals("localhost")
                || name.matches("127(\\.[0-9]{1,3}){3}")
                || name.equals("[::1]")
                || name.equals(options.host().toLowerCase(Locale.ROOT))
                || name.equals("[" + options.host().toLowerCase(Locale.ROOT) + "]")
                || (!loopback && local(name))
                || options.origins().stream()
                        .anyMatch(origin -> authority(origin).equals(host));
    }

    /** Whether nobody who owns a domain can have a browser take this for a page's name. */
    private static boolean local(String name) {
        return name.matches("[0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9a-f:.]+]")
                || !name.contains(".")
                || LOCAL_ENDS.stream().anyMatch(name::endsWith);
    }

    private static String authority(String origin) {
        return origin.replaceFirst("^https?://", "");
    }
}
