package dev.kvmerge.kernels;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import dev.kvmerge.TestModel;
import dev.kvmerge.bindings.Kvmerge_h;
import java.lang.foreign.AddressLayout;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.GroupLayout;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemoryLayout.PathElement;
import java.lang.foreign.SequenceLayout;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.List;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** The generated bindings against the header as the native library was compiled. */
@Tag("native")
class BindingsTest {
    private static List<String> abi;

    @BeforeAll
    static void load() {
        TestModel.library();
        abi = Kvmerge.abi().lines().toList();
    }

    @Test
    void everyFunctionHasTheSignatureThatWasCompiled() throws ReflectiveOperationException {
        var expected = new TreeSet<String>();
        abi.stream().filter(l -> l.startsWith("function ")).forEach(expected::add);
        var actual = new TreeSet<String>();
        for (Method method : Kvmerge_h.class.getMethods()) {
            if (method.getName().endsWith("$descriptor")) {
                String name = method.getName().replace("$descriptor", "");
                actual.add("function " + name + " " + describe((FunctionDescriptor) method.invoke(null)));
            }
        }
        assertEquals(String.join("\n", expected), String.join("\n", actual));
        assertFalse(expected.isEmpty());
    }

    @Test
    void everyStructHasTheLayoutThatWasCompiled() throws ReflectiveOperationException {
        for (String line : abi) {
            String[] word = line.split(" ");
            if (word[0].equals("struct")) {
                assertEquals(Long.parseLong(word[2]), layout(word[1]).byteSize(), line);
                long fields = abi.stream()
                        .filter(l -> l.startsWith("field " + word[1] + "."))
                        .count();
                assertEquals(
                        fields,
                        layout(word[1]).memberLayouts().stream()
                                .filter(m -> m.name().isPresent())
                                .count(),
                        "fields of " + word[1]);
            } else if (word[0].equals("field")) {
                String[] path = word[1].split("\\.");
                PathElement field = PathElement.groupElement(path[1]);
                assertEquals(Long.parseLong(word[2]), layout(path[0]).byteOffset(field), line);
                assertEquals(word[3], describe(layout(path[0]).select(field)), line);
            }
        }
    }

    @Test
    void everyConstantHasTheValueThatWasCompiled() throws ReflectiveOperationException {
        long constants = 0;
        for (String line : abi) {
            String[] word = line.split(" ");
            if (word[0].equals("constant")) {
                assertEquals(
                        Integer.parseInt(word[2]),
                        Kvmerge_h.class.getMethod(word[1]).invoke(null),
                        line);
                constants++;
            }
        }
        assertEquals(
                Arrays.stream(Kvmerge_h.class.getMethods())
                        .filter(m -> m.getName().startsWith("KVMERGE_"))
                        .count(),
                constants);
    }

    private static GroupLayout layout(String struct) throws ReflectiveOperationException {
        return (GroupLayout) Class.forName("dev.kvmerge.bindings." + struct)
                .getMethod("layout")
                .invoke(null);
    }

    private static String describe(FunctionDescriptor f) {
        String result = f.returnLayout().map(BindingsTest::describe).orElse("void");
        return Stream.concat(Stream.of(result), f.argumentLayouts().stream().map(BindingsTest::describe))
                .collect(Collectors.joining(" "));
    }

    private static String describe(MemoryLayout layout) {
        return switch (layout) {
            case AddressLayout a -> "ptr";
            case ValueLayout.OfBoolean b -> "bool";
            case ValueLayout.OfFloat f -> "f32";
            case ValueLayout.OfDouble d -> "f64";
            case ValueLayout v -> "i" + 8 * v.byteSize();
            case SequenceLayout s -> describe(s.elementLayout()) + "[" + s.elementCount() + "]";
            default -> "struct[" + layout.byteSize() + "]";
        };
    }
}
