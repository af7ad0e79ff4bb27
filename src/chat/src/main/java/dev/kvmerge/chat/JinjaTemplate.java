package dev.kvmerge.chat;

import com.hubspot.jinjava.Jinjava;
import com.hubspot.jinjava.JinjavaConfig;
import com.hubspot.jinjava.LegacyOverrides;
import com.hubspot.jinjava.el.JinjavaProcessors;
import com.hubspot.jinjava.interpret.Context.Library;
import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.interpret.RenderResult;
import com.hubspot.jinjava.interpret.TemplateError;
import com.hubspot.jinjava.lib.Importable;
import com.hubspot.jinjava.lib.fn.ELFunctionDefinition;
import dev.kvmerge.KvmergeException;
import java.util.Collection;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;

/**
 * A Jinja template as transformers renders chat templates: trim_blocks, lstrip_blocks, loop controls,
 * {@code raise_exception}, {@code strftime_now} and its {@code tojson}, no HTML escapes. A template is input: it
 * reaches no file, no class path and no Java method but those of {@link TemplateValues}, and ends at limits of time, of
 * output and of what a list or text may hold. Any thread.
 */
public final class JinjaTemplate {
    static final int MOST_OUTPUT = 16 << 20; // characters, of any text
    private static final int MOST_ELEMENTS = 100_000; // of a list or map
    private static final int MOST_RANGE = 10_000;
    private static final int MOST_DEPTH = 20; // of macros, and of what is rendered in what is rendered
    private static final long MOST_NANOS = 5_000_000_000L;

    // What chat templates use of Jinja2's; Jinjava has more, which read files, run texts as templates or fill the
    // memory.
    private static final Set<String> TAGS = Set.of(
            "for",
            "endfor",
            "if",
            "elif",
            "else",
            "endif",
            "set",
            "endset",
            "macro",
            "endmacro",
            "call",
            "endcall",
            "break",
            "continue",
            "do");
    static final Set<String> FILTERS = Set.of(
            "abs",
            "capitalize",
            "count",
            "d",
            "default",
            "dictsort",
            "e",
            "escape",
            "first",
            "float",
            "indent",
            "int",
            "items",
            "join",
            "last",
            "length",
            "list",
            "lower",
            "map",
            "reject",
            "rejectattr",
            "replace",
            "reverse",
            "round",
            "safe",
            "select",
            "selectattr",
            "sort",
            "string",
            "sum",
            "title",
            "tojson",
            "trim",
            "unique",
            "upper");
    private static final Set<String> FUNCTIONS = Set.of(":range", ":dict", ":namespace");

    private static final Jinjava ENGINE = engine();
    private static final ThreadLocal<Long> DEADLINE = new ThreadLocal<>();

    private final String source;
    private final TemplateSource.Rewritten rewritten;

    private JinjaTemplate(String source) {
        this.source = source;
        this.rewritten = TemplateSource.rewrite(source);
    }

    /**
     * A template.
     *
     * @throws KvmergeException if it ends within a tag, or has what kvmerge does not run
     */
    public static JinjaTemplate of(String source) {
        return new JinjaTemplate(source);
    }

    /** The template as it was given. */
    public String source() {
        return source;
    }

    /**
     * Renders it.
     *
     * @param variables texts, numbers, truth values, and lists and maps of them
     * @throws TemplateRefusal if the template raises one, with its words
     * @throws KvmergeException if it is wrong, or takes too long or too much
     */
    public String render(Map<String, Object> variables) {
        Map<String, Object> all = new HashMap<>(rewritten.constants());
        all.put("raise_exception", "a function"); // so that it "is defined"
        all.put("strftime_now", "a function");
        all.putAll(variables);
        all.replaceAll((name, value) -> Falsehood.hide(value));
        DEADLINE.set(System.nanoTime() + MOST_NANOS);
        RenderResult result;
        try {
            result = ENGINE.renderForResult(rewritten.text(), all);
        } catch (RuntimeException | StackOverflowError e) {
            throw failure(e, e.toString());
        } finally {
            DEADLINE.remove();
        }
        if (!result.getErrors().isEmpty()) {
            TemplateError error = result.getErrors().getFirst();
            throw failure(error.getException(), error.getMessage());
        }
        return Falsehood.show(result.getOutput());
    }

    private static KvmergeException failure(Throwable thrown, String message) {
        for (Throwable cause = thrown; cause != null; cause = cause.getCause()) {
            if (cause instanceof KvmergeException ours) {
                return ours;
            }
        }
        return new KvmergeException(
                "the chat template cannot be run: " + message + " (give another with --chat-template-file)", thrown);
    }

    private static Jinjava engine() {
        Jinjava all = new Jinjava();
        JinjavaConfig config = JinjavaConfig.newBuilder()
                .withNestedInterpretationEnabled(false)
                .withMaxOutputSize(MOST_OUTPUT)
                .withMaxStringLength(MOST_OUTPUT)
                .withMaxListSize(MOST_ELEMENTS)
                .withMaxMapSize(MOST_ELEMENTS)
                .withRangeLimit(MOST_RANGE)
                .withMaxRenderDepth(MOST_DEPTH)
                .withEnableRecursiveMacroCalls(true)
                .withMaxMacroRecursionDepth(MOST_DEPTH)
                .withElResolver(new TemplateValues())
                .withProcessors(JinjavaProcessors.newBuilder()
                        .withNodePreProcessor((node, interpreter) -> checkProgress(interpreter))
                        .build())
                .withLegacyOverrides(LegacyOverrides.newBuilder()
                        .withEvaluateMapKeys(true)
                        .withIterateOverMapKeys(true)
                        .withUsePyishObjectMapper(true)
                        .withUseNaturalOperatorPrecedence(true)
                        .withKeepNullableLoopValues(true)
                        .build())
                .withDisabled(Map.of(
                        Library.TAG, names(all.getGlobalContext().getAllTags(), TAGS),
                        Library.FILTER, names(all.getGlobalContext().getAllFilters(), FILTERS),
                        Library.FUNCTION, names(all.getGlobalContext().getAllFunctions(), FUNCTIONS)))
                .build();
        Jinjava engine = new Jinjava(config);
        engine.setResourceLocator((name, encoding, interpreter) -> {
            throw new KvmergeException("the chat template wants the file '" + name + "': it may read none");
        });
        TemplateFilters.all().forEach(engine.getGlobalContext()::registerFilter);
        TemplateTests.all().forEach(engine.getGlobalContext()::registerExpTest);
        engine.getGlobalContext()
                .registerFunction(new ELFunctionDefinition(
                        "", "raise_exception", TemplateFunctions.class, "raise", Object.class));
        engine.getGlobalContext()
                .registerFunction(
                        new ELFunctionDefinition("", "strftime_now", TemplateFunctions.class, "now", String.class));
        engine.getGlobalContext()
                .registerFunction(
                        new ELFunctionDefinition("", Expressions.MAP, TemplateFunctions.class, "map", Object[].class));
        return engine;
    }

    private static Set<String> names(Collection<? extends Importable> all, Set<String> but) {
        return all.stream()
                .map(Importable::getName)
                .filter(name -> !but.contains(name))
                .collect(Collectors.toSet());
    }

    /** Before each piece of the template: an error ends it, and so does the time. */
    private static void checkProgress(JinjavaInterpreter interpreter) {
        Long deadline = DEADLINE.get();
        if (!interpreter.getErrors().isEmpty()) {
            TemplateError error = interpreter.getErrors().getFirst();
            throw failure(error.getException(), error.getMessage());
        }
        if (Thread.currentThread().isInterrupted()) {
            throw new KvmergeException("the chat template was interrupted");
        }
        if (deadline != null && System.nanoTime() - deadline > 0) {
            throw new KvmergeException("the chat template runs for more than " + MOST_NANOS / 1_000_000_000L
                    + " seconds: give another with --chat-template-file");
        }
    }
}
