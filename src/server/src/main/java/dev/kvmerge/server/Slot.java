package dev.kvmerge.server;

import dev.kvmerge.engine.CellsUsage;

/** A place for a conversation, which keeps what it has read for the next request. Taken and given by {@link Slots}. */
final class Slot {
    /** How full a slot is. */
    record Fill(int tokens, int cells, int allocated, long bytes) {
        double mib() {
            return bytes / 1048576.0;
        }
    }

    private final int id;
    private final Inference.Conversation conversation;
    private boolean busy; // this and the next are guarded by Slots
    private long lastUsed; // a count of uses; 0 for never
    private volatile long task = -1; // the request that it works on, or the last one
    private volatile int generated; // pieces of the present or the last answer
    private volatile Fill fill = new Fill(0, 0, 0, 0);

    Slot(int id, Inference.Conversation conversation) {
        this.id = id;
        this.conversation = conversation;
        look();
    }

    int id() {
        return id;
    }

    /** For the thread that has taken the slot; the others may cancel it. */
    Inference.Conversation conversation() {
        return conversation;
    }

    boolean busy() {
        return busy;
    }

    long lastUsed() {
        return lastUsed;
    }

    void taken() {
        busy = true;
    }

    void given(long use) {
        busy = false;
        lastUsed = use;
    }

    long task() {
        return task;
    }

    int generated() {
        return generated;
    }

    void begin(long number) {
        task = number;
        generated = 0;
    }

    void countPiece() {
        generated++;
    }

    /** How full it was when it was looked at last. */
    Fill fill() {
        return fill;
    }

    /** Looks how full it is; the thread that has taken it. */
    Fill look() {
        CellsUsage cells = conversation.usage();
        fill = new Fill(conversation.tokens().length, cells.cellsInUse(), cells.cellsAllocated(), cells.bytes());
        return fill;
    }
}
