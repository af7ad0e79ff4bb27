package dev.kvmerge.strategy;

import dev.kvmerge.cache.Planner;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.RecordComponent;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * A compression method: a {@link Planner} with a name. Write one as a record whose components are its parameters; see the README for
 * one in twenty lines.
 */
public interface Strategy extends Planner {
    /** Its name on the command line and in results. */
    String name();

    /** Fewest cells it can work with, given the tokens of a block. */
    default int fewestCells(int block) {
        return 2;
    }

    /** Its parameters, for the record: the record's components. */
    default Map<String, Object> parameters() {
        Map<String, Object> parameters = new LinkedHashMap<>();
        if (getClass().isRecord()) {
            for (RecordComponent component : getClass().getRecordComponents()) {
                try {
                    var accessor = component.getAccessor();
                    accessor.setAccessible(true);
                    Object value = accessor.invoke(this);
                    parameters.put(
                            component.getName(),
                            switch (value) {
                                case Enum<?> e -> e.name().toLowerCase(java.util.Locale.ROOT);
                                case dev.kvmerge.attention.Calibration c -> c.name();
                                case null -> "none";
                                default -> value;
                            });
                } catch (IllegalAccessException | InvocationTargetException e) {
                    throw new IllegalStateException(
                            "cannot read the parameter " + component.getName() + " of " + name(), e);
                }
            }
        }
        return parameters;
    }
}
