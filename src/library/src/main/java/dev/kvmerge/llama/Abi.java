package dev.kvmerge.llama;

import dev.kvmerge.bindings.Kvmerge_h;
import java.lang.foreign.AddressLayout;
import java.lang.foreign.GroupLayout;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemoryLayout.PathElement;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SequenceLayout;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * The border that the generated bindings were made for, held against a library's own words for it (kvmerge_abi).
 * Nothing is called for it.
 */
final class Abi {
    private static final String FUNCTION = "kvmerge_";
    private static final String CONSTANT = "KVMERGE_";
    private static final Map<Class<?>, String> WORDS = Map.of(
            MemorySegment.class, "ptr",
            boolean.class, "bool",
            byte.class, "i8",
            short.class, "i16",
            int.class, "i32",
            long.class, "i64",
            float.class, "f32",
            double.class, "f64");

    private Abi() {}

    /**
     * The first line that differs between a library and the bindings.
     *
     * @param text the library's kvmerge_abi()
     * @return what differs, in kvmerge_abi's words; empty when nothing does
     */
    static Optional<String> difference(String text) {
        Set<String> library = new TreeSet<>(text.lines().toList());
        for (String line : ours(library)) {
            if (!library.remove(line)) {
                return Optional.of("the bindings have '" + line + "'");
            }
        }
        return library.stream().findFirst().map(line -> "the library has '" + line + "'");
    }

    /** Every function, constant and struct of the bindings; of structs, those that the library has too. */
    private static Set<String> ours(Set<String> library) {
        Set<String> lines = new TreeSet<>();
        Map<String, Method> functions = new TreeMap<>();
        for (Method method : Kvmerge_h.class.getMethods()) {
            if (method.getName().startsWith(CONSTANT)) {
                lines.add("constant " + method.getName() + " " + value(method));
            } else if (method.getName().startsWith(FUNCTION)
                    && !method.getName().contains("$")) {
                functions.put(method.getName(), method);
            }
        }
        functions.values().forEach(method -> lines.add(describe(method)));
        library.stream()
                .filter(line -> line.startsWith("struct "))
                .map(line -> line.split(" ")[1])
                .forEach(struct -> layout(struct).ifPresent(layout -> describe(struct, layout, lines)));
        return lines;
    }

    private static Object value(Method constant) {
        try {
            return constant.invoke(null);
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
    }

    private static Optional<GroupLayout> layout(String struct) {
        try {
            Class<?> bound = Class.forName(Kvmerge_h.class.getPackageName() + "." + struct);
            return Optional.of((GroupLayout) bound.getMethod("layout").invoke(null));
        } catch (ClassNotFoundException e) {
            return Optional.empty();
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
    }

    private static String describe(Method function) {
        String types = Stream.concat(Stream.of(function.getReturnType()), Arrays.stream(function.getParameterTypes()))
                .map(Abi::describe)
                .collect(Collectors.joining(" "));
        return "function " + function.getName() + " " + types;
    }

    private static void describe(String struct, GroupLayout layout, Set<String> lines) {
        lines.add("struct " + struct + " " + layout.byteSize());
        for (MemoryLayout member : layout.memberLayouts()) {
            member.name()
                    .ifPresent(name -> lines.add("field " + struct + "." + name + " "
                            + layout.byteOffset(PathElement.groupElement(name)) + " " + describe(member)));
        }
    }

    private static String describe(Class<?> type) {
        return WORDS.getOrDefault(type, type.getName());
    }

    private static String describe(MemoryLayout layout) {
        return switch (layout) {
            case AddressLayout a -> "ptr";
            case ValueLayout v -> describe(v.carrier());
            case SequenceLayout s -> describe(s.elementLayout()) + "[" + s.elementCount() + "]";
            default -> "struct[" + layout.byteSize() + "]";
        };
    }
}
