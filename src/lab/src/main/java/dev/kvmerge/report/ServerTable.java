package dev.kvmerge.report;

import dev.kvmerge.eval.ServerBench.Row;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** Servers beside each other. */
public final class ServerTable {
    private ServerTable() {}

    /** A row a server and kind of request; ratios are to the first server. */
    public static String of(List<Row> rows) {
        List<String[]> cells = new ArrayList<>();
        cells.add(new String[] {
            "message",
            "at once",
            "server",
            "prompt",
            "first token",
            "ratio",
            "tokens/s each",
            "ratio",
            "tokens/s all",
            "ratio"
        });
        for (Row r : rows) {
            cells.add(new String[] {
                r.message(),
                Integer.toString(r.atOnce()),
                r.server(),
                String.format(Locale.ROOT, "%,d", r.prompt()),
                String.format(Locale.ROOT, "%.3f s", r.first()),
                number(r.firstRatio()),
                String.format(Locale.ROOT, "%.1f", r.each()),
                number(r.eachRatio()),
                String.format(Locale.ROOT, "%.1f", r.all()),
                number(r.allRatio())
            });
        }
        return Table.align(cells)
                + "\nfirst token: seconds from the request to the first text, the median of those at once."
                + "\ntokens/s each: of an answer after its first token; all: of all together, that wait included."
                + "\nratio: to the first server in the same turn. All are medians over turns.\n";
    }

    private static String number(double x) {
        return String.format(Locale.ROOT, "%.2f", x);
    }
}
