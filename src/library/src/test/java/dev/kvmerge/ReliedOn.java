package dev.kvmerge;

import java.io.IOException;
import java.lang.foreign.GroupLayout;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemoryLayout.PathElement;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Pattern;

/**
 * jextract/relied-on.txt: what kvmerge relies on in llama.cpp. Symbols and constants come from jextract/llama.includes
 * and Observer, structs and fields from the bindings as they were generated, names from native/src/llama_graph.cpp. A
 * line each:
 *
 * <pre>
 * symbol NAME                   a function of its libraries
 * constant NAME VALUE           in its headers
 * struct NAME BYTES             in its headers
 * field STRUCT.NAME OFFSET BYTES
 * name NAME                     of graph nodes and caches, as llama.cpp's code has it
 * </pre>
 */
public final class ReliedOn {
    static final Path FILE = TestModel.HOME.resolve("jextract/relied-on.txt");

    private ReliedOn() {}

    /** Writes the list: 'make bindings' and 'make relied-on'. */
    public static void main(String[] args) throws IOException, ReflectiveOperationException {
        Files.writeString(FILE, text());
        System.out.println("wrote " + FILE);
    }

    /** The list as the sources have it now. */
    static String text() throws IOException, ReflectiveOperationException {
        Set<String> lines = new TreeSet<>();
        for (String option : Files.readAllLines(TestModel.HOME.resolve("jextract/llama.includes"))) {
            String[] word = option.split(" ");
            switch (word[0]) {
                case "--include-function" -> lines.add("symbol " + word[1]);
                case "--include-constant" ->
                    lines.add("constant " + word[1] + " "
                            + Class.forName("dev.kvmerge.bindings.Llama_h")
                                    .getMethod(word[1])
                                    .invoke(null));
                case "--include-struct" -> struct(word[1], lines);
                default -> {} // a comment
            }
        }
        add(lines, "symbol ", "src/library/src/main/java/dev/kvmerge/kernels/ObserverParams.java", "\"(ggml_\\w+)\"");
        add(lines, "name ", "native/src/llama_graph.cpp", "constexpr const char \\* \\w+ = \"([^\"]+)\";");
        return "# What kvmerge relies on in llama.cpp. Written by 'make relied-on'; checked by 'make test-relied-on'.\n"
                + String.join("\n", lines)
                + "\n";
    }

    private static void add(Set<String> lines, String kind, String file, String pattern) throws IOException {
        Pattern.compile(pattern)
                .matcher(Files.readString(TestModel.HOME.resolve(file)))
                .results()
                .forEach(found -> lines.add(kind + found.group(1)));
    }

    private static void struct(String name, Set<String> lines) throws ReflectiveOperationException {
        GroupLayout layout = (GroupLayout) Class.forName("dev.kvmerge.bindings." + name)
                .getMethod("layout")
                .invoke(null);
        lines.add("struct " + name + " " + layout.byteSize());
        for (MemoryLayout member : layout.memberLayouts()) {
            member.name()
                    .ifPresent(field -> lines.add("field " + name + "." + field + " "
                            + layout.byteOffset(PathElement.groupElement(field)) + " " + member.byteSize()));
        }
    }
}
