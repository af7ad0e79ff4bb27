package dev.kvmerge.eval;

import dev.kvmerge.attention.Calibration;
import dev.kvmerge.strategy.Method;
import dev.kvmerge.strategy.Strategy;
import java.util.LinkedHashMap;
import java.util.Map;

/** A method's parameters as results note them. */
final class NotedParameters {
    private NotedParameters() {}

    /** With a calibration's digest beside its name, by which those of one name are not taken for each other. */
    static Map<String, Object> of(Method method) {
        Map<String, Object> noted = new LinkedHashMap<>(method.parameters());
        Calibration calibration =
                method instanceof Strategy strategy ? strategy.needs().calibration() : null;
        if (calibration != null) {
            noted.put("calibrationDigest", calibration.digest());
        }
        return noted;
    }
}
