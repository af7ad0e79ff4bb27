package dev.kvmerge.chat;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.exptest.ExpTest;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;

/** The tests ("is string") in which Jinjava differs from Jinja2. */
final class TemplateTests {
    /** Those that a template may use. */
    static final Set<String> NAMES = Set.of(
            "boolean",
            "defined",
            "divisibleby",
            "eq",
            "equalto",
            "even",
            "false",
            "float",
            "ge",
            "gt",
            "in",
            "integer",
            "iterable",
            "le",
            "lower",
            "lt",
            "mapping",
            "ne",
            "none",
            "number",
            "odd",
            "sameas",
            "sequence",
            "string",
            "true",
            "undefined",
            "upper");

    private TemplateTests() {}

    static List<ExpTest> all() {
        return List.of(
                test("string", value -> value instanceof String),
                test("mapping", value -> value instanceof Map),
                test("iterable", value -> value instanceof Iterable || value instanceof Map || value instanceof String),
                test(
                        "sequence",
                        value -> value instanceof Collection || value instanceof Map || value instanceof String),
                test("boolean", value -> value instanceof Boolean),
                test("number", value -> value instanceof Number || value instanceof Boolean),
                test("integer", value -> value instanceof Long || value instanceof Integer),
                test("true", value -> Boolean.TRUE.equals(value)),
                test("false", value -> Boolean.FALSE.equals(value)),
                test("none", value -> value == null),
                test("undefined", value -> value == null),
                test("defined", value -> value != null),
                new ExpTest() {
                    @Override
                    public String getName() {
                        return Expressions.LACKS;
                    }

                    @Override
                    public boolean evaluate(Object value, JinjavaInterpreter interpreter, Object... args) {
                        throw Expressions.lacks(args[0]);
                    }
                });
    }

    private static ExpTest test(String name, Predicate<Object> predicate) {
        return new ExpTest() {
            @Override
            public String getName() {
                return name;
            }

            @Override
            public boolean evaluate(Object value, JinjavaInterpreter interpreter, Object... args) {
                return predicate.test(value);
            }
        };
    }
}
