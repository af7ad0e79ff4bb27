package dev.kvmerge.chat;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Clock;
import java.time.Instant;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Templates against what Jinja2 makes of them (python/expected.py), and those that mean harm. */
@Tag("fast")
class JinjaTemplateTest {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Path RESOURCES =
            Path.of(System.getProperty("kvmerge.home", "../.."), "src/chat/src/test/resources");

    @BeforeAll
    static void stopTheClock() {
        TemplateFunctions.clock = Clock.fixed(Instant.parse("2026-03-07T09:05:02Z"), ZoneOffset.UTC);
    }

    @AfterAll
    static void goOn() {
        TemplateFunctions.clock = Clock.systemDefaultZone();
    }

    static Stream<Arguments> conversations() throws IOException {
        List<Arguments> all = new ArrayList<>();
        Map<String, List<Map<String, Object>>> conversations =
                JSON.readValue(RESOURCES.resolve("conversations.json").toFile(), new TypeReference<>() {});
        try (Stream<Path> files = Files.list(RESOURCES.resolve("templates"))) {
            for (Path file :
                    files.filter(f -> f.toString().endsWith(".jinja")).sorted().toList()) {
                String name = file.getFileName().toString().replace(".jinja", "");
                JsonNode expected = JSON.readTree(
                        RESOURCES.resolve("expected/" + name + ".json").toFile());
                for (Map.Entry<String, JsonNode> one : expected.properties()) {
                    boolean prompt = one.getKey().endsWith(" prompt");
                    String conversation = one.getKey().replace(" prompt", "");
                    all.add(Arguments.of(
                            name,
                            one.getKey(),
                            Files.readString(file),
                            conversations.get(conversation),
                            prompt,
                            one.getValue()));
                }
            }
        }
        return all.stream();
    }

    @ParameterizedTest(name = "{0}: {1}")
    @MethodSource("conversations")
    void isAsJinja2(
            String name,
            String conversation,
            String template,
            List<Map<String, Object>> messages,
            boolean prompt,
            JsonNode expected) {
        Map<String, Object> variables = new HashMap<>(Map.of("messages", messages, "add_generation_prompt", prompt));
        variables.put("bos_token", "<s>");
        variables.put("eos_token", "</s>");
        if (expected.has("text")) {
            assertEquals(
                    expected.get("text").asText(), JinjaTemplate.of(template).render(variables));
        } else {
            assertTrue(expected.get("refusal").asBoolean(), "the template is right: " + expected);
            String message = assertThrows(TemplateRefusal.class, () -> JinjaTemplate.of(template)
                            .render(variables))
                    .getMessage();
            assertEquals(
                    "the model's chat template refuses the conversation: "
                            + expected.get("error").asText(),
                    message);
        }
    }

    static Stream<Arguments> snippets() throws IOException {
        return JSON.readTree(RESOURCES.resolve("expected/snippets.json").toFile()).properties().stream()
                .map(one -> Arguments.of(one.getKey(), one.getValue().asText()));
    }

    @ParameterizedTest
    @MethodSource("snippets")
    void expressionsAreAsJinja2s(String snippet, String expected) {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("k", "v");
        map.put("j", 2L);
        assertEquals(
                expected,
                JinjaTemplate.of(snippet)
                        .render(Map.of(
                                "n",
                                1L,
                                "s",
                                "hello",
                                "m",
                                List.of("a", "b", "c"),
                                "d",
                                map,
                                "o",
                                List.of(Map.of("r", "x"), Map.of("r", "y")))));
    }

    private static String refused(String template) {
        return assertThrows(KvmergeException.class, () -> JinjaTemplate.of(template)
                        .render(Map.of("s", "x", "m", List.of("a"), "d", Map.of())))
                .getMessage();
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "{{ s.getClass() }}",
                "{{ s.getClass().forName('java.lang.Runtime') }}",
                "{{ m.getClass() }}",
                "{{ d.getClass() }}",
                "{{ ____int3rpr3t3r____.getConfig() }}",
                "{{ m.stream() }}",
                "{% for x in m %}{{ loop.getClass() }}{% endfor %}",
                "{% include 'META-INF/MANIFEST.MF' %}",
                "{% import 'META-INF/MANIFEST.MF' as x %}",
                "{% from 'META-INF/MANIFEST.MF' import x %}",
                "{% extends 'META-INF/MANIFEST.MF' %}",
                "{{ '{{ 1 }}' | render }}",
                "{{ s | fromyaml }}",
                "{{ type(s) }}"
            })
    void nothingOfJavaIsReached(String template) {
        refused(template);
    }

    @Test
    void nothingOfJavaIsRead() {
        for (String property : List.of("s.class", "m.class", "d.class", "____int3rpr3t3r____.config", "s.bytes")) {
            assertEquals(
                    "",
                    JinjaTemplate.of("{{ " + property + " }}").render(Map.of("s", "x", "m", List.of(), "d", Map.of())));
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
                "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
                "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}"
                        + "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
                "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}"
                        + "{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
                "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}"
                        + "{% set n.x = n.x.join(range(999)) %}{% endfor %}",
                "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
                "{{ 'x' | center(2000000000) }}",
                "{{ '%2000000000d' | format(1) }}"
            })
    void whatWouldFillTheMemoryIsRefused(String template) {
        refused(template);
    }

    @Test
    @Tag("slow")
    void whatWouldFillTheMemoryPieceByPieceIsRefused() {
        refused("{% for i in range(9999) %}{% for j in range(9999) %}{{ 'some text' }}{% endfor %}{% endfor %}");
    }

    @Test
    @Tag("slow")
    void whatWouldNotEndIsEnded() {
        String loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}"
                + "{% endfor %}{% endfor %}";
        assertTrue(refused(loops).contains("runs for more than 5 seconds"));
        Thread.currentThread().interrupt();
        try {
            assertTrue(refused(loops).contains("interrupted"));
        } finally {
            assertTrue(Thread.interrupted());
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "{{ s",
                "{% if s %}",
                "{# s",
                "{{ 'a }}",
                "{% if %}x{% endif %}",
                "{{ s | nosuch }}",
                "{{ s.nosuch() }}",
                "{{ nosuch() }}",
                "{% nosuch %}",
                "{% for x in m %}{% else %}{% endfor %}",
                "{{ (s }}",
                "{{ kvmerge_text0 }}",
                "{% raw %}",
                "{% for x in m %}{{ loop.previtem }}{% endfor %}",
                "{{ s is nosuch }}"
            })
    void whatIsWrongIsSaid(String template) {
        assertTrue(refused(template).contains("chat template"), refused(template));
    }
}
