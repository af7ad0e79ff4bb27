package dev.kvmerge;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;
import static com.tngtech.archunit.library.Architectures.layeredArchitecture;
import static com.tngtech.archunit.library.dependencies.SlicesRuleDefinition.slices;

import com.tngtech.archunit.core.importer.ImportOption;
import com.tngtech.archunit.junit.AnalyzeClasses;
import com.tngtech.archunit.junit.ArchTag;
import com.tngtech.archunit.junit.ArchTest;
import com.tngtech.archunit.lang.ArchRule;

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
            .whereLayer("strategy")
            .mayOnlyBeAccessedByLayers("cli", "report", "eval")
            .whereLayer("cache")
            .mayOnlyBeAccessedByLayers("cli", "eval", "strategy")
            .whereLayer("attention")
            .mayOnlyBeAccessedByLayers("cli", "eval", "cache", "strategy")
            .whereLayer("kernels")
            .mayOnlyBeAccessedByLayers("cli", "eval", "strategy", "cache", "attention")
            .whereLayer("bindings")
            .mayOnlyBeAccessedByLayers("kernels", "llama");

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
}
