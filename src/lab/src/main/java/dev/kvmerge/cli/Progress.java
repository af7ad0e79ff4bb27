package dev.kvmerge.cli;

import java.io.PrintStream;
import java.util.Locale;

/** A progress bar with the time left on standard error; on a file or pipe, a line now and then. */
final class Progress implements AutoCloseable {
    private static final int BAR = 24;
    private static final long TERMINAL_NANOS = 100_000_000L;
    private static final long PIPE_NANOS = 10_000_000_000L;

    private final PrintStream err = System.err;
    private final boolean terminal =
            System.console() != null && System.console().isTerminal();
    private final String what;
    private final long start = System.nanoTime();
    private long lastShown;
    private int width;

    Progress(String what) {
        this.what = what;
        lastShown =
                start - PIPE_NANOS + (terminal ? 0 : 1_000_000_000L); // soon on a terminal, after a second elsewhere
    }

    /** Shows a step. @param done 0..1, or less than 0 when it is not known */
    void update(double done, String details) {
        long now = System.nanoTime();
        if (now - lastShown < (terminal ? TERMINAL_NANOS : PIPE_NANOS)) {
            return;
        }
        lastShown = now;
        double seconds = (now - start) / 1e9;
        String line;
        if (done < 0) {
            line = what + "  " + time(seconds) + (details.isEmpty() ? "" : "  " + details);
        } else {
            int filled = (int) Math.round(done * BAR);
            String left = done > 0.02 ? time(seconds / done - seconds) + " left" : "";
            line = String.format(
                    Locale.ROOT,
                    "%s [%s%s] %3.0f %%  %s  %s",
                    what,
                    "#".repeat(filled),
                    ".".repeat(BAR - filled),
                    100 * done,
                    details,
                    left);
        }
        if (terminal) {
            err.print("\r" + line + " ".repeat(Math.max(0, width - line.length())));
            err.flush();
            width = line.length();
        } else {
            err.println(line);
        }
    }

    @Override
    public void close() {
        clear();
    }

    /** Takes the bar off the terminal, so that something else can be printed. */
    void clear() {
        if (terminal && width > 0) {
            err.print("\r" + " ".repeat(width) + "\r");
            err.flush();
        }
    }

    static String time(double seconds) {
        long s = Math.round(seconds);
        return s < 60
                ? s + " s"
                : s < 3600
                        ? String.format(Locale.ROOT, "%d:%02d", s / 60, s % 60)
                        : String.format(Locale.ROOT, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    }
}
