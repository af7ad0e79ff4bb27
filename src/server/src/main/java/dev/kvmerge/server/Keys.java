package dev.kvmerge.server;

import io.helidon.http.HeaderName;
import io.helidon.http.HeaderNames;
import io.helidon.http.ServerRequestHeaders;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.List;
import java.util.Optional;

/** The API keys. Comparing takes the same time whether a key is nearly right or not at all. */
final class Keys {
    private static final String BEARER = "Bearer ";
    private static final HeaderName X_API_KEY = HeaderNames.create("X-Api-Key");

    private final List<byte[]> hashes;

    Keys(List<String> keys) {
        this.hashes = keys.stream().map(Keys::hash).toList();
    }

    /**
     * Lets a request with one of the keys pass.
     *
     * @throws ApiException 401
     */
    void check(ServerRequestHeaders headers) {
        if (hashes.isEmpty()) {
            return;
        }
        Optional<String> given = headers.first(HeaderNames.AUTHORIZATION)
                .filter(value -> value.regionMatches(true, 0, BEARER, 0, BEARER.length()))
                .map(value -> value.substring(BEARER.length()).strip())
                .or(() -> headers.first(X_API_KEY));
        byte[] hash = hash(given.orElse(""));
        boolean right = false;
        for (byte[] one : hashes) {
            right |= MessageDigest.isEqual(one, hash);
        }
        if (!right) {
            throw ApiException.unauthorized(given.isPresent());
        }
    }

    private static byte[] hash(String key) {
        try {
            return MessageDigest.getInstance("SHA-256").digest(key.getBytes(StandardCharsets.UTF_8));
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every JDK has SHA-256", e);
        }
    }
}
