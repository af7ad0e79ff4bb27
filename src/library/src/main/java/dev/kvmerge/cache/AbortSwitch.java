package dev.kvmerge.cache;

import dev.kvmerge.llama.Context;

/** Ends a decode early while the caller wants that and the decode that runs allows it. Any thread. */
final class AbortSwitch {
    private final Context context;
    private boolean wanted; // by the caller
    private boolean allowed; // by the decode that runs

    AbortSwitch(Context context) {
        this.context = context;
    }

    synchronized void want(boolean now) {
        wanted = now;
        context.abort(wanted && allowed);
    }

    synchronized void allow(boolean now) {
        allowed = now;
        context.abort(wanted && allowed);
    }
}
