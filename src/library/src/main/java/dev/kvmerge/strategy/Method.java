package dev.kvmerge.strategy;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.RecordComponent;
import java.util.LinkedHashMap;
import java.util.Map;

/** What an experiment can run: a {@link Strategy}, which plans, or a {@link Scale}, which nobody plans with. */
public sealed interface Method permits Strategy, Scale {
    /** Its name on the command line and in results. */
    String name();

    /** Whether every cell stays. */
    boolean keepsAll();

    /**
     * Fewest cells it can work with.
     *
     * @param block tokens that come between two plans
     */
    int fewestCells(int block);

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
