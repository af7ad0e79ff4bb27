package dev.kvmerge.cli;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.Supplier;

/**
 * Results that are kept by what they are of: none is made that is there, and all are written whenever one is made. What
 * calls before have made comes first, whether it is asked for or not.
 */
final class KeptResults<W, R> {
    private final Map<W, R> made = new LinkedHashMap<>();
    private final Consumer<List<R>> write;

    /**
     * @param before what is there
     * @param which what a result is of
     */
    KeptResults(List<R> before, Function<R, W> which, Consumer<List<R>> write) {
        before.forEach(result -> made.put(which.apply(result), result));
        this.write = write;
    }

    R get(W which, Supplier<R> make) {
        R there = made.get(which);
        if (there != null) {
            return there;
        }
        R result = make.get();
        made.put(which, result);
        write.accept(List.copyOf(made.values()));
        return result;
    }
}
