package dev.kvmerge.cache;

/** Where the time went, in nanoseconds. */
public final class Timings {
    private long decode;
    private long observe;
    private long plan;
    private long apply;

    Timings() {}

    /** Inside llama.cpp, without the observer. */
    public long decode() {
        return decode;
    }

    /** In the eval callback. */
    public long observe() {
        return observe;
    }

    /** Deciding, reading keys and values included. */
    public long plan() {
        return plan;
    }

    /** Rewriting and freeing cells. */
    public long apply() {
        return apply;
    }

    /** Observing, planning and applying. */
    public long overhead() {
        return observe + plan + apply;
    }

    /** All of it. */
    public long total() {
        return decode + overhead();
    }

    void addDecode(long nanos) {
        decode += nanos;
    }

    void addObserve(long nanos) {
        observe += nanos;
    }

    void addPlan(long nanos) {
        plan += nanos;
    }

    void addApply(long nanos) {
        apply += nanos;
    }
}
