package dev.kvmerge.server;

import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Deque;
import java.util.Iterator;
import java.util.List;
import java.util.Set;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.stream.Collectors;

/** The slots, and the requests that wait for one, first come first served. */
final class Slots implements AutoCloseable {
    /** Any slot. */
    static final int ANY = -1;

    private static final Duration CANCELLING = Duration.ofSeconds(10); // a block of a prompt takes less

    private final ReentrantLock lock = new ReentrantLock();
    private final Condition given = lock.newCondition();
    private final List<Slot> all = new ArrayList<>();
    private final Deque<Ticket> waiting = new ArrayDeque<>();
    private final int most; // that wait
    private long uses;
    private boolean draining;

    private final class Ticket {
        private final Prompt prompt;
        private final int wanted;
        private final Condition changed = lock.newCondition();
        private Slot slot;
        private boolean gone;

        private Ticket(Prompt prompt, int wanted) {
            this.prompt = prompt;
            this.wanted = wanted;
        }
    }

    /** The client went away while its request waited. */
    static final class GoneException extends RuntimeException {
        private static final long serialVersionUID = 1L;

        GoneException() {
            super("the client is gone", null, false, false);
        }
    }

    Slots(Inference inference, int slots, int most) {
        this.most = most;
        for (int i = 0; i < slots; i++) {
            all.add(new Slot(i, inference.open()));
        }
    }

    int size() {
        return all.size();
    }

    /** Requests that wait. */
    int waiting() {
        lock.lock();
        try {
            return waiting.size();
        } finally {
            lock.unlock();
        }
    }

    /** Whether requests are still taken. */
    boolean draining() {
        lock.lock();
        try {
            return draining;
        } finally {
            lock.unlock();
        }
    }

    /** All of them, by number. */
    List<Slot> all() {
        return Collections.unmodifiableList(all);
    }

    /** The numbers of those at work. */
    Set<Integer> working() {
        lock.lock();
        try {
            return all.stream().filter(Slot::busy).map(Slot::id).collect(Collectors.toSet());
        } finally {
            lock.unlock();
        }
    }

    /** The slot of a number. */
    Slot get(int id) {
        if (id < 0 || id >= all.size()) {
            throw ApiException.notFound("There is no slot " + id + ": they are 0 to " + (all.size() - 1) + ".");
        }
        return all.get(id);
    }

    /**
     * Waits for a slot: of the idle ones the one that has read most of the prompt, else the one that was used least
     * lately.
     *
     * @param wanted its number, or {@link #ANY}
     * @throws ApiException 503 when as many wait as may, or the server is being shut down; 504 when the time is over
     * @throws GoneException when the client is gone
     */
    Slot take(Prompt prompt, int wanted, Caller caller, Duration patience) {
        lock.lock();
        Ticket ticket = new Ticket(prompt, wanted);
        try {
            checkOpen();
            waiting.add(ticket);
            assign();
            if (ticket.slot == null && waiting.size() > most) {
                throw ApiException.unavailable(
                        "queue_full",
                        "All " + all.size() + " slots are at work and " + most
                                + " requests wait, as many as may (--queue): try again later.");
            }
        } catch (RuntimeException e) {
            waiting.remove(ticket);
            throw e;
        } finally {
            lock.unlock();
        }
        if (ticket.slot != null) {
            return ticket.slot;
        }
        caller.onGone(() -> leave(ticket));
        try {
            return await(ticket, patience);
        } finally {
            caller.onGone(null);
        }
    }

    private Slot await(Ticket ticket, Duration patience) {
        lock.lock();
        try {
            long left = patience.toNanos();
            while (ticket.slot == null) {
                if (ticket.gone) {
                    throw new GoneException();
                }
                checkOpen();
                if (left <= 0) {
                    throw ApiException.unavailable(
                            "queue_timeout", "No slot became free within " + patience.toSeconds() + " seconds.");
                }
                left = ticket.changed.awaitNanos(left);
            }
            return ticket.slot;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new GoneException();
        } finally {
            if (ticket.slot == null) {
                waiting.remove(ticket);
            }
            lock.unlock();
        }
    }

    private void leave(Ticket ticket) {
        lock.lock();
        try {
            ticket.gone = true;
            ticket.changed.signal();
        } finally {
            lock.unlock();
        }
    }

    /** Takes an idle slot at once. */
    Slot takeIdle(int id) {
        lock.lock();
        try {
            Slot slot = get(id);
            if (slot.busy()) {
                throw ApiException.conflict("Slot " + id + " is at work: try again when its answer is whole.");
            }
            slot.taken();
            return slot;
        } finally {
            lock.unlock();
        }
    }

    /** Gives a slot back. */
    void give(Slot slot) {
        lock.lock();
        try {
            slot.given(++uses);
            assign();
            given.signalAll();
        } finally {
            lock.unlock();
        }
    }

    private void assign() {
        for (Iterator<Ticket> tickets = waiting.iterator(); tickets.hasNext(); ) {
            Ticket ticket = tickets.next();
            Slot best = ticket.gone ? null : best(ticket);
            if (best != null) {
                best.taken();
                ticket.slot = best;
                ticket.changed.signal();
                tickets.remove();
            }
        }
    }

    private Slot best(Ticket ticket) {
        Slot best = null;
        int known = 0;
        for (Slot slot : all) {
            if (slot.busy() || ticket.wanted != ANY && ticket.wanted != slot.id()) {
                continue;
            }
            int reusable = agreeing(slot, ticket.prompt);
            if (best == null || reusable > known || reusable == known && slot.lastUsed() < best.lastUsed()) {
                best = slot;
                known = reusable;
            }
        }
        return best;
    }

    /**
     * How many tokens of a prompt a slot has read, where it is the conversation that goes on, or was edited late; 0
     * where no more agrees than two conversations have in common, as a system prompt: it would lose its own.
     */
    private static int agreeing(Slot slot, Prompt prompt) {
        if (!prompt.cached()) {
            return 0;
        }
        int[] read = slot.conversation().tokens();
        int differs = Arrays.mismatch(read, prompt.tokens());
        int agreeing = differs < 0 ? read.length : differs;
        return agreeing * 2 > read.length ? agreeing : 0;
    }

    private void checkOpen() {
        if (draining) {
            throw ApiException.unavailable("shutting_down", "The server is being shut down.");
        }
    }

    /** Refuses what comes and what waits from now on, and waits for what runs; whether all of it ended. */
    boolean drain(Duration patience) {
        lock.lock();
        try {
            draining = true;
            waiting.forEach(ticket -> ticket.changed.signal());
            long left = patience.toNanos();
            while (all.stream().anyMatch(Slot::busy)) {
                if (left <= 0) {
                    return false;
                }
                left = given.awaitNanos(left);
            }
            return true;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return false;
        } finally {
            lock.unlock();
        }
    }

    /** Refuses what comes, cancels what runs, and frees the conversations. */
    @Override
    public void close() {
        drain(Duration.ZERO);
        all.forEach(slot -> slot.conversation().cancel());
        drain(CANCELLING);
        all.forEach(slot -> slot.conversation().close());
    }
}
