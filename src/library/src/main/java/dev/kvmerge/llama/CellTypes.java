package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.ContextOptions.CellType;
import java.util.Arrays;
import java.util.Locale;
import java.util.Objects;
import java.util.stream.Collectors;

/**
 * The types of a cache's K and V cells.
 *
 * @param keys of the K cells (-ctk)
 * @param values of the V cells (-ctv); quantised ones need flash attention
 */
public record CellTypes(CellType keys, CellType values) {
    public static final CellTypes F16 = new CellTypes(CellType.F16, CellType.F16);

    public CellTypes {
        Objects.requireNonNull(keys, "keys");
        Objects.requireNonNull(values, "values");
    }

    /**
     * "q8_0" for both, or "q8_0/q4_0" for K and V.
     *
     * @throws KvmergeException.Usage for a type that there is not
     */
    public static CellTypes parse(String text) {
        String[] parts = text.split("/", -1);
        if (parts.length > 2) {
            throw unknown(text);
        }
        return new CellTypes(type(parts[0], text), type(parts[parts.length - 1], text));
    }

    private static CellType type(String name, String text) {
        return Arrays.stream(CellType.values())
                .filter(type -> type.text().equals(name.toLowerCase(Locale.ROOT)))
                .findFirst()
                .orElseThrow(() -> unknown(text));
    }

    private static KvmergeException.Usage unknown(String text) {
        return new KvmergeException.Usage("there are no cells of type '" + text + "': give one of "
                + Arrays.stream(CellType.values()).map(CellType::text).collect(Collectors.joining(", "))
                + ", or two as q8_0/q4_0, of the K and V cells");
    }

    /** As {@link #parse} reads it. */
    public String text() {
        return keys == values ? keys.text() : keys.text() + "/" + values.text();
    }
}
