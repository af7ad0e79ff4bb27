package dev.kvmerge.server;

import java.nio.file.Path;
import java.time.Duration;
import java.util.List;

/** Options of a test's server, on any port that is free. */
final class TestOptions {
    private final int slots;
    private String host = "127.0.0.1";
    private List<String> keys = List.of();
    private List<String> origins = List.of();
    private int queue = 64;
    private Duration timeout = Duration.ofSeconds(60);
    private int body = 1 << 20;
    private Path files;
    private boolean shown = true;

    private TestOptions(int slots) {
        this.slots = slots;
    }

    static TestOptions slots(int n) {
        return new TestOptions(n);
    }

    TestOptions host(String address) {
        host = address;
        return this;
    }

    TestOptions keys(String... all) {
        keys = List.of(all);
        return this;
    }

    TestOptions origins(String... all) {
        origins = List.of(all);
        return this;
    }

    TestOptions queue(int n) {
        queue = n;
        return this;
    }

    TestOptions timeout(Duration most) {
        timeout = most;
        return this;
    }

    TestOptions body(int most) {
        body = most;
        return this;
    }

    TestOptions files(Path folder) {
        files = folder;
        return this;
    }

    TestOptions hidden() {
        shown = false;
        return this;
    }

    ServerOptions build() {
        return new ServerOptions(
                host, 0, null, keys, origins, slots, queue, timeout, 0, -1, body, 20, files, shown, shown);
    }
}
