package dev.kvmerge.engine;

import dev.kvmerge.Failures;
import dev.kvmerge.cache.SequenceGroup;
import dev.kvmerge.cache.SequenceGroup.Decoded;
import dev.kvmerge.cache.SequenceGroup.Logits;
import dev.kvmerge.cache.SequenceGroup.Part;
import dev.kvmerge.llama.Context;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.IntConsumer;
import java.util.function.Supplier;
import java.util.stream.Stream;

/**
 * One thread that decodes what all sessions want. A batch is the next token of every generation and one block of one
 * prompt: so no generation waits for more than a block of another's prompt, and prompts take turns.
 */
final class Scheduler implements AutoCloseable {
    /**
     * A batch waits for generations that choose their next token, for a quarter of the last one's time; bounds of it.
     */
    private static final long LEAST_GRACE = 5_000_000; // nanoseconds

    private static final long MOST_GRACE = 50_000_000;

    private final SequenceGroup group;
    private final ReentrantLock lock = new ReentrantLock();
    private final Condition work = lock.newCondition();
    private final Deque<Job> queue = new ArrayDeque<>();
    private final Set<Sequence> awaited = new HashSet<>(); // generations that are choosing a token
    private final Thread thread;
    private List<Job> running = List.of();
    private long lastBatch; // nanoseconds
    private boolean operated; // what was done last was no batch
    private boolean closed;
    private Throwable failure; // what has ended the thread

    Scheduler(SequenceGroup group, String name) {
        this.group = group;
        thread = Thread.ofPlatform().daemon().name(name).start(this::run);
    }

    /** Tokens of a sequence to decode, or something else to do with it. */
    private final class Job {
        final Sequence sequence;
        final int[] tokens; // null for something else
        final Runnable operation;
        final Condition done = lock.newCondition();
        boolean cancelled;
        boolean isDone;
        boolean isDecoded; // its tokens are in the cache, also if something was thrown after that
        Throwable failure;

        Job(Sequence sequence, int[] tokens, Runnable operation) {
            this.sequence = sequence;
            this.tokens = tokens;
            this.operation = operation;
        }

        boolean isToken() {
            return tokens != null && tokens.length == 1;
        }

        boolean isPrompt() {
            return tokens != null && tokens.length > 1;
        }

        void finish(boolean decoded, Throwable thrown) {
            isDone = true;
            isDecoded = decoded;
            failure = thrown;
            done.signal();
            if (decoded) {
                awaited.add(sequence);
            }
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
     * @param counted told how many of the tokens are in the cache now, all or none, also if something is thrown
     * @return false if it was ended before it was done
     */
    boolean decode(Sequence sequence, int[] tokens, Ending ending, IntConsumer counted) {
        Job job = new Job(sequence, tokens, null);
        lock.lock();
        try {
            submit(job);
            while (!job.isDone) {
                long left = ending.nanosLeft();
                if (left <= 0 && !job.cancelled) {
                    cancel(job);
                } else {
                    await(job, left, ending);
                }
            }
        } finally {
            lock.unlock();
        }
        counted.accept(job.isDecoded ? tokens.length : 0);
        Failures.rethrow(job.failure);
        return job.isDecoded;
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

    /** Does something with cells between two batches, and waits for it. */
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
        Failures.rethrow(job.failure);
        return result.getFirst();
    }

    /** As {@link #call}, and on this thread where the scheduler's own has failed: sessions must be closed then too. */
    void callLast(Runnable operation) {
        lock.lock();
        try {
            if (failure != null) {
                operation.run();
                return;
            }
        } finally {
            lock.unlock();
        }
        call(() -> {
            operation.run();
            return true;
        });
    }

    private void submit(Job job) {
        if (failure != null) {
            throw new IllegalStateException("the engine has failed: close it and make another", failure);
        }
        if (closed) {
            throw new IllegalStateException("the engine is closed");
        }
        queue.add(job);
        awaited.remove(job.sequence);
        work.signal();
    }

    /**
     * A job that waits is not done; a prompt's block that is decoded alone ends early. Others are done to their end.
     */
    private void cancel(Job job) {
        job.cancelled = true;
        if (queue.remove(job)) {
            job.finish(false, null);
        } else if (running.size() == 1 && running.getFirst() == job) {
            job.sequence.abort(true);
        }
    }

    /** A session wants to look at its {@link Ending} again. */
    void wake(Sequence sequence) {
        lock.lock();
        try {
            Stream.concat(running.stream(), queue.stream())
                    .filter(j -> j.sequence == sequence)
                    .forEach(j -> j.done.signal());
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
                perform(next());
            }
        } catch (Throwable e) { // else all who wait here would wait for ever
            closed = true;
            failure = e;
            Stream.concat(running.stream(), queue.stream())
                    .filter(job -> !job.isDone)
                    .forEach(job -> job.finish(false, e));
            queue.clear();
        } finally {
            lock.unlock();
        }
    }

    /** Waits until there is something to do; false when there will not be. */
    private boolean await() {
        while (queue.isEmpty() && !closed) {
            work.awaitUninterruptibly();
        }
        long end = System.nanoTime() + Math.clamp(lastBatch / 4, LEAST_GRACE, MOST_GRACE);
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

    /**
     * What is done next: what is no decoding, by itself, or all tokens and one block of a prompt. They take turns, so
     * that neither waits for long.
     */
    private List<Job> next() {
        List<Job> operation =
                queue.stream().filter(j -> j.tokens == null).limit(1).toList();
        List<Job> batch = new ArrayList<>(queue.stream().filter(Job::isToken).toList());
        queue.stream().filter(Job::isPrompt).findFirst().ifPresent(batch::add);
        operated = !operation.isEmpty() && (batch.isEmpty() || !operated);
        running = operated ? operation : batch;
        queue.removeAll(running);
        return running;
    }

    /** Unlocked while it works. */
    private void perform(List<Job> jobs) {
        if (jobs.isEmpty()) { // all were cancelled
            return;
        }
        jobs.stream().filter(j -> j.tokens != null).forEach(j -> j.sequence.abort(false));
        lock.unlock();
        List<Runnable> ends = new ArrayList<>();
        long start = System.nanoTime();
        try {
            if (jobs.size() == 1) {
                ends.add(alone(jobs.getFirst()));
            } else {
                ends.addAll(together(jobs));
            }
        } finally {
            lock.lock();
        }
        lastBatch = System.nanoTime() - start;
        ends.forEach(Runnable::run);
        running = List.of();
    }

    /** Returns how the job ends. */
    private Runnable alone(Job job) {
        int before = job.tokens == null ? 0 : job.sequence.context().position();
        try {
            if (job.tokens == null) {
                job.operation.run();
                return () -> job.finish(false, null);
            }
            if (job.isPrompt()) {
                job.sequence.flush();
            }
            job.sequence.decode(job.tokens);
            return () -> job.finish(true, null);
        } catch (Context.Aborted e) {
            return () -> job.finish(false, null);
        } catch (Throwable e) { // a planner may throw what it does not declare
            boolean counts = job.tokens != null && job.sequence.context().position() > before;
            return () -> job.finish(counts, e);
        }
    }

    private List<Runnable> together(List<Job> jobs) {
        List<Runnable> ends = new ArrayList<>();
        List<Job> ready = new ArrayList<>();
        for (Job job : jobs) {
            try {
                if (job.isPrompt()) {
                    job.sequence.flush(); // as it would be alone
                }
                ready.add(job);
            } catch (Throwable e) {
                ends.add(() -> job.finish(false, e));
            }
        }
        if (ready.isEmpty()) {
            return ends;
        }
        try {
            Decoded decoded = group.decode(ready.stream()
                    .map(j -> new Part(j.sequence.number(), j.tokens, Logits.LAST))
                    .toList());
            for (int i = 0; i < ready.size(); i++) {
                Job job = ready.get(i);
                boolean counts = decoded.isDecoded(i);
                Throwable failure = decoded.failure(i);
                if (counts) {
                    job.sequence.keep(decoded.logits(i));
                }
                ends.add(() -> job.finish(counts, failure));
            }
        } catch (Throwable e) {
            ready.forEach(job -> ends.add(() -> job.finish(false, e)));
        }
        return ends;
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
