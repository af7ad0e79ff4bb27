package dev.kvmerge.report;

import dev.kvmerge.eval.Retrieval.Row;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** What was found at which depth. */
public final class RetrievalTable {
    private RetrievalTable() {}

    /** A table, the full cache first; it says so when not even that finds anything. */
    public static String of(List<Row> rows, double[] depths) {
        List<String[]> cells = new ArrayList<>();
        String[] head = new String[depths.length + 4];
        head[0] = "cache";
        head[1] = "cells";
        for (int d = 0; d < depths.length; d++) {
            head[2 + d] = String.format(Locale.ROOT, "at %.0f %%", 100 * depths[d]);
        }
        head[depths.length + 2] = "found";
        head[depths.length + 3] = "nats/token";
        cells.add(head);
        for (Row r : rows) {
            String[] line = new String[head.length];
            line[0] = r.cache()
                    + (r.compression() == 0 ? "" : String.format(Locale.ROOT, " %.0f %%", 100 * r.compression()));
            line[1] = Integer.toString(r.cells());
            for (int d = 0; d < depths.length; d++) {
                line[2 + d] = String.format(Locale.ROOT, "%.0f %%", 100 * r.found()[d]);
            }
            line[depths.length + 2] = String.format(Locale.ROOT, "%.0f %%", 100 * r.meanFound());
            line[depths.length + 3] = String.format(Locale.ROOT, "%.3f", r.meanNll());
            cells.add(line);
        }
        String text = Table.align(cells);
        return rows.getFirst().meanFound() > 0
                ? text
                : text
                        + "\nThe model does not find the number with the full cache: it is too small for this, and "
                        + "only nats/token tells the caches apart.\n";
    }

    /** One row a cache and depth. */
    public static String csv(List<Row> rows, double[] depths) {
        StringBuilder text = new StringBuilder("cache,compression,cells,depth,found,nll\n");
        for (Row r : rows) {
            for (int d = 0; d < depths.length; d++) {
                text.append(String.format(
                        Locale.ROOT,
                        "\"%s\",%s,%d,%s,%.4f,%.5f%n",
                        r.cache(),
                        r.compression(),
                        r.cells(),
                        depths[d],
                        r.found()[d],
                        r.nll()[d]));
            }
        }
        return text.toString();
    }
}
