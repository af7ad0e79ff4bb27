package dev.kvmerge;

import static com.tngtech.archunit.core.domain.JavaClass.Predicates.resideInAPackage;
import static com.tngtech.archunit.core.domain.JavaClass.Predicates.resideInAnyPackage;
import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.classes;
import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;
import static com.tngtech.archunit.library.Architectures.layeredArchitecture;
import static com.tngtech.archunit.library.dependencies.SlicesRuleDefinition.slices;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.domain.PackageMatcher;
import com.tngtech.archunit.core.importer.ImportOption;
import com.tngtech.archunit.junit.AnalyzeClasses;
import com.tngtech.archunit.junit.ArchTag;
import com.tngtech.archunit.junit.ArchTest;
import com.tngtech.archunit.lang.ArchRule;
import java.util.Arrays;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;

/** The arrows of docs/architecture.md. */
@ArchTag("fast")
@AnalyzeClasses(packages = "dev.kvmerge", importOptions = ImportOption.DoNotIncludeTests.class)
class ArchitectureTest {
    @ArchTest
    static final ArchRule ARROWS = layeredArchitecture()
            .consideringOnlyDependenciesInLayers()
            .layer("cli")
            .definedBy("..cli..")
            .layer("report")
            .definedBy("..report..")
            .layer("models")
            .definedBy("..models..")
            .layer("eval")
            .definedBy("..eval..")
            .layer("server")
            .definedBy("..server..")
            .layer("chat")
            .definedBy("..chat..")
            .layer("engine")
            .definedBy("..engine..")
            .layer("strategy")
            .definedBy("..strategy..")
            .layer("cache")
            .definedBy("..cache..")
            .layer("attention")
            .definedBy("..attention..")
            .layer("kernels")
            .definedBy("..kernels..")
            .layer("llama")
            .definedBy("..llama..")
            .layer("bindings")
            .definedBy("..bindings..")
            .whereLayer("cli")
            .mayNotBeAccessedByAnyLayer()
            .whereLayer("report")
            .mayOnlyBeAccessedByLayers("cli")
            .whereLayer("models")
            .mayOnlyBeAccessedByLayers("cli")
            .whereLayer("eval")
            .mayOnlyBeAccessedByLayers("cli", "report")
            .whereLayer("server")
            .mayOnlyBeAccessedByLayers("cli")
            .whereLayer("chat")
            .mayOnlyBeAccessedByLayers("cli", "server")
            .whereLayer("engine")
            .mayOnlyBeAccessedByLayers("cli", "server", "chat", "eval")
            .whereLayer("strategy")
            .mayOnlyBeAccessedByLayers("cli", "report", "eval", "engine")
            .whereLayer("cache")
            .mayOnlyBeAccessedByLayers("cli", "server", "eval", "engine", "strategy")
            .whereLayer("attention")
            .mayOnlyBeAccessedByLayers("cli", "eval", "engine", "cache", "strategy")
            .whereLayer("kernels")
            .mayOnlyBeAccessedByLayers("cli", "eval", "engine", "strategy", "cache", "attention")
            .whereLayer("bindings")
            .mayOnlyBeAccessedByLayers("kernels", "llama");

    private static final String[] LIBRARY = {
        "dev.kvmerge",
        "dev.kvmerge.attention..",
        "dev.kvmerge.bindings..",
        "dev.kvmerge.cache..",
        "dev.kvmerge.engine..",
        "dev.kvmerge.kernels..",
        "dev.kvmerge.llama..",
        "dev.kvmerge.strategy..",
    };

    /** Module src/library: nothing of the lab, and no library but the JDK's. */
    @ArchTest
    static final ArchRule THE_LIBRARY_NEEDS_NOTHING_BUT_THE_JDK = classes()
            .that()
            .resideInAnyPackage(LIBRARY)
            .should()
            .onlyDependOnClassesThat(resideInAnyPackage(LIBRARY).or(resideInAPackage("java..")));

    /** A newcomer finds a package in one folder. */
    @ArchTest
    static void everyPackageIsInOneModule(JavaClasses all) {
        Map<String, Set<String>> modules = new TreeMap<>();
        for (JavaClass one : all) {
            String module = one.getSource()
                    .orElseThrow()
                    .getUri()
                    .toString()
                    .replaceFirst(one.getName().replace('.', '/').replace("$", "\\$") + "\\.class$", "");
            modules.computeIfAbsent(one.getPackageName(), name -> new TreeSet<>())
                    .add(module);
        }
        assertTrue(modules.size() >= 11, "packages found: " + modules.keySet());
        modules.forEach((name, in) -> assertEquals(1, in.size(), name + " is in " + in));
        for (String name : modules.keySet()) {
            boolean library =
                    Arrays.stream(LIBRARY).anyMatch(p -> PackageMatcher.of(p).matches(name));
            assertEquals(
                    library,
                    modules.get(name).equals(modules.get("dev.kvmerge.llama")),
                    name + " is in " + modules.get(name));
        }
    }

    @ArchTest
    static final ArchRule NO_CYCLES =
            slices().matching("dev.kvmerge.(*)..").should().beFreeOfCycles();

    @ArchTest
    static final ArchRule STRATEGIES_ARE_PURE = noClasses()
            .that()
            .resideInAPackage("..strategy..")
            .should()
            .dependOnClassesThat()
            .resideInAnyPackage(
                    "..llama..", "..bindings..", "java.lang.foreign..", "java.io..", "java.nio..", "java.time..");

    /** Plots are drawn on machines without fonts and with a JDK without its desktop libraries. */
    @ArchTest
    static final ArchRule NO_DESKTOP =
            noClasses().should().dependOnClassesThat().resideInAnyPackage("java.awt..", "javax.swing..");
}
