package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.RecordComponent;
import java.util.Arrays;
import java.util.Locale;
import java.util.Map;

/** Parameters of strategies by name: a record's components, "recent-share" for recentShare. */
final class Parameters {
    /** Old names of parameters, which are accepted for a release. */
    private static final Map<String, String> RENAMED = Map.of("snapkv:window", "queries");

    private Parameters() {}

    /**
     * A copy of a strategy or scale with some parameters set.
     *
     * @param settings as "recent-share=0.3"
     * @throws KvmergeException.Usage if it is not a record, has no such parameter, or refuses the value
     */
    static Method set(Method strategy, String[] settings) {
        if (!strategy.getClass().isRecord()) {
            throw new KvmergeException.Usage(
                    "the strategy " + strategy.name() + " takes no parameters: it is not a record");
        }
        RecordComponent[] components = strategy.getClass().getRecordComponents();
        if (components.length == 0) {
            throw new KvmergeException.Usage(
                    strategy.name() + " has no parameters: leave ':" + String.join(":", settings) + "' out");
        }
        Object[] values = new Object[components.length];
        Class<?>[] types = new Class<?>[components.length];
        try {
            for (int i = 0; i < components.length; i++) {
                components[i].getAccessor().setAccessible(true);
                values[i] = components[i].getAccessor().invoke(strategy);
                types[i] = components[i].getType();
            }
            for (String setting : settings) {
                int equals = setting.indexOf('=');
                int which = equals < 0 ? -1 : find(components, today(strategy, setting.substring(0, equals)));
                if (equals < 0) {
                    throw new KvmergeException.Usage("the strategy " + strategy.name()
                            + " takes parameters with a value, as NAME=VALUE, not '" + setting + "'");
                }
                if (which < 0) {
                    throw new KvmergeException.Usage(
                            "the strategy " + strategy.name() + " has no parameter '" + setting.substring(0, equals)
                                    + "': it takes "
                                    + String.join(
                                            ", ",
                                            Arrays.stream(components)
                                                    .map(c -> kebab(c.getName()) + "=")
                                                    .toList()));
                }
                values[which] = parse(setting.substring(equals + 1), types[which], setting);
            }
            var constructor = strategy.getClass().getDeclaredConstructor(types);
            constructor.setAccessible(true);
            return (Method) constructor.newInstance(values);
        } catch (InvocationTargetException e) {
            if (e.getCause() instanceof KvmergeException refused) {
                throw new KvmergeException.Usage(
                        strategy.name() + ":" + String.join(":", settings) + ": " + refused.getMessage());
            }
            throw new IllegalStateException("cannot make " + strategy.name(), e);
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException("cannot make " + strategy.name(), e);
        }
    }

    private static String today(Method strategy, String parameter) {
        return RENAMED.getOrDefault(strategy.name() + ":" + parameter, parameter);
    }

    private static int find(RecordComponent[] components, String name) {
        for (int i = 0; i < components.length; i++) {
            if (kebab(components[i].getName()).equals(name)
                    || components[i].getName().equals(name)) {
                return i;
            }
        }
        return -1;
    }

    private static String kebab(String camel) {
        return camel.replaceAll("([A-Z])", "-$1").toLowerCase(Locale.ROOT);
    }

    @SuppressWarnings({"unchecked", "rawtypes"})
    private static Object parse(String text, Class<?> type, String setting) {
        try {
            if (type == int.class) {
                return Integer.valueOf(text);
            }
            if (type == long.class) {
                return Long.valueOf(text);
            }
            if (type == double.class) {
                return Double.valueOf(text);
            }
            if (type == boolean.class && (text.equals("true") || text.equals("false"))) {
                return Boolean.valueOf(text);
            }
            if (type.isEnum()) {
                return Enum.valueOf((Class<Enum>) type, text.toUpperCase(Locale.ROOT));
            }
            if (type == String.class) {
                return text;
            }
        } catch (IllegalArgumentException e) {
            // said below
        }
        String kind = type == int.class || type == long.class
                ? "a whole number"
                : type == double.class
                        ? "a number"
                        : type == boolean.class
                                ? "true or false"
                                : "one of "
                                        + Arrays.toString(type.getEnumConstants())
                                                .toLowerCase(Locale.ROOT);
        int equals = setting.indexOf('=');
        throw new KvmergeException.Usage(
                "the parameter " + setting.substring(0, equals) + " is " + kind + ", not '" + text + "'");
    }
}
