package dev.kvmerge.engine;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Supplier;

/**
 * One thread that decodes what all sessions want. A round is the next token of every generation, and after them one
 * block of one prompt: so no generation waits for more than a block of another's prompt, and prompts take turns.
 */
final class Scheduler implements AutoCloseable {
    /** How long a round waits for generations whose last token has just been given out. */
    private static final long GRACE_NANOS = 5_000_000;

    private final ReentrantLock lock = new ReentrantLock();
    private final Condition work = lock.newCondition();
    private final Deque<Job> queue = new ArrayDeque<>();
    private final Set<Sequence> awaited = new HashSet<>(); // generations that are choosing a token
    private final Thread thread;
    private Job current;
    private boolean closed;

    Scheduler(String name) {
        thread = Thread.ofPlatform().daemon().name(name).start(this::run);
    }

    /** Tokens of a sequence to decode, or something else to do with it. */
    private final class Job {
        final Sequence sequence;
        final int[] tokens; // null for something else
        final Runnable operation;
        final Condition done = lock.newCondition();
        boolean cancelled; // before it began, it is not done at all
        boolean isDone;
        boolean succeeded;
        Throwable failure;

        Job(Sequence sequence, int[] tokens, Runnable operation) {
            this.sequence = sequence;
            this.tokens = tokens;
            this.operation = operation;
        }

        boolean isToken() {
            return tokens != null && tokens.length == 1;
        }

        void finish(boolean success, Throwable thrown) {
            isDone = true;
            succeeded = success;
            failure = thrown;
            done.signal();
        }
    }

    /** Asked again and again while a job waits or runs. */
    interface Ending {
        /** Nanoseconds until it may be time to end; 0 or less: it is. */
        long nanosLeft();

        /** This thread was interrupted. */
        void interrupted();
    }

    /**
     * Decodes tokens after the sequence's others, and waits for it.
     *
     * @return false if it was ended before it was done, and nothing of it counts
     */
    boolean decode(Sequence sequence, int[] tokens, Ending ending) {
        Job job = new Job(sequence, tokens, null);
        lock.lock();
        try {
            submit(job);
            while (!job.isDone) {
                long left = ending.nanosLeft();
                if (left <= 0 && !job.cancelled) {
                    cancel(job);
                } else {
                    await(job, job.cancelled ? Long.MAX_VALUE : left, ending);
                }
            }
        } finally {
            lock.unlock();
        }
        rethrow(job.failure);
        return job.succeeded;
    }

    private void await(Job job, long nanos, Ending ending) {
        if (job.cancelled) {
            job.done.awaitUninterruptibly();
            return;
        }
        try {
            job.done.awaitNanos(nanos);
        } catch (InterruptedException e) {
            ending.interrupted();
        }
    }

    /** Does something with cells between two rounds, and waits for it. */
    <T> T call(Supplier<T> operation) {
        List<T> result = new ArrayList<>();
        Job job = new Job(null, null, () -> result.add(operation.get()));
        lock.lock();
        try {
            submit(job);
            while (!job.isDone) {
                job.done.awaitUninterruptibly();
            }
        } finally {
            lock.unlock();
        }
        rethrow(job.failure);
        return result.getFirst();
    }

    private void submit(Job job) {
        if (closed) {
            throw new IllegalStateException("the engine is closed");
        }
        queue.add(job);
        awaited.remove(job.sequence);
        work.signal();
    }

    private static void rethrow(Throwable failure) {
        switch (failure) {
            case null -> {}
            case RuntimeException e -> throw e;
            case Error e -> throw e;
            default -> throw new IllegalStateException(failure);
        }
    }

    private void cancel(Job job) {
        job.cancelled = true;
        if (queue.remove(job)) {
            job.finish(false, null);
        } else if (job == current) {
            job.sequence.abort(true);
        }
    }

    /** A session wants to look at its {@link Ending} again. */
    void wake(Sequence sequence) {
        lock.lock();
        try {
            if (current != null && current.sequence == sequence) {
                current.done.signal();
            }
            queue.stream().filter(j -> j.sequence == sequence).forEach(j -> j.done.signal());
        } finally {
            lock.unlock();
        }
    }

    /** A generation has ended: nobody waits for its next token. */
    void leave(Sequence sequence) {
        lock.lock();
        try {
            if (awaited.remove(sequence)) {
                work.signal();
            }
        } finally {
            lock.unlock();
        }
    }

    private void run() {
        lock.lock();
        try {
            while (await()) {
                for (Job job : round()) {
                    if (queue.remove(job)) { // else it was cancelled meanwhile
                        perform(job);
                    }
                }
            }
        } finally {
            lock.unlock();
        }
    }

    /** Waits until there is something to do; false when there will not be. */
    private boolean await() {
        while (queue.isEmpty() && !closed) {
            work.awaitUninterruptibly();
        }
        long end = System.nanoTime() + GRACE_NANOS;
        while (!awaited.isEmpty() && !closed) {
            long left = end - System.nanoTime();
            if (left <= 0) {
                awaited.clear(); // whoever is slow is not waited for until it comes
                break;
            }
            try {
                work.awaitNanos(left);
            } catch (InterruptedException e) {
                break; // nobody knows this thread to interrupt it
            }
        }
        return !queue.isEmpty() || !closed;
    }

    /** What is done next: what is no decoding, all tokens, and one block of a prompt, in the order they came. */
    private List<Job> round() {
        List<Job> round =
                new ArrayList<>(queue.stream().filter(j -> j.tokens == null).toList());
        queue.stream().filter(Job::isToken).forEach(round::add);
        queue.stream().filter(j -> j.tokens != null && !j.isToken()).findFirst().ifPresent(round::add);
        return round;
    }

    /** Unlocked while it works. */
    private void perform(Job job) {
        current = job;
        if (job.tokens != null) {
            job.sequence.abort(false);
        }
        Throwable failure = null;
        boolean success = false;
        lock.unlock();
        try {
            if (job.tokens == null) {
                job.operation.run();
                success = true;
            } else {
                success = job.sequence.decode(job.tokens);
            }
        } catch (RuntimeException | Error e) {
            failure = e;
        } finally {
            lock.lock();
        }
        current = null;
        job.finish(success, failure);
        if (success && job.tokens != null) {
            awaited.add(job.sequence);
        }
    }

    /** Does what is queued, and ends. */
    @Override
    public void close() {
        lock.lock();
        try {
            closed = true;
            work.signal();
        } finally {
            lock.unlock();
        }
        boolean interrupted = false;
        while (thread.isAlive()) {
            try {
                thread.join();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
