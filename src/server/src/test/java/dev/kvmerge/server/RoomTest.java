package dev.kvmerge.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.time.Duration;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** What is done at once is bounded by its size. */
@Tag("fast")
class RoomTest {
    @Test
    void whatDoesNotFitIsToldToComeBack() {
        Room room = new Room(10, Duration.ofMillis(5));
        room.with(7, () -> {
            assertEquals("small", room.with(3, () -> "small"));
            ApiException e = assertThrows(ApiException.class, () -> room.with(4, () -> "large"));
            assertEquals(503, e.status());
            return null;
        });
        assertEquals("all of it", room.with(1 << 20, () -> "all of it"));
        assertThrows(
                IllegalStateException.class,
                () -> room.with(10, () -> {
                    throw new IllegalStateException();
                }));
        assertEquals("free again", room.with(10, () -> "free again"));
    }
}
