package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Figures from what a command prints, by way of docs/results, to a page. */
@Tag("fast")
class FiguresTest {
    private static final String EXPERIMENT = """
            llama 256M Q4_1, 4,096 tokens of alice.txt

            strategy    cells     PPL  same top  tokens/s  speed
            ----------------------------------------------------
            full        4,096  17.802         -       157  1.00 x
            70 % fewer cells (2,866 tokens scored, full cache PPL 17.288)
              h2o       1,229  17.665    91.8 %       190  1.21 x
              d2o:a=1   1,229  17.740    91.9 %       180  1.15 x

            h2o, 70 % fewer cells: +2.2 % perplexity
            h2o against d2o:a=1, 70 % fewer cells: KL -0.0041 +/- 0.0040 (a tie), perplexity -0.42 % +/- 0.18
            """;

    @TempDir
    Path docs;

    @Test
    void anExperimentIsTakenWithItsPartsAndPairs() {
        Map<String, Figures> tables = Figures.printed(EXPERIMENT);
        assertEquals(
                "fewer cells,strategy,cells,PPL,same top,tokens/s,speed\n"
                        + "0 %,full,\"4,096\",17.802,-,157,1.00 x\n"
                        + "70 %,h2o,\"1,229\",17.665,91.8 %,190,1.21 x\n"
                        + "70 %,d2o:a=1,\"1,229\",17.740,91.9 %,180,1.15 x\n",
                tables.get("").csv());
        assertEquals(
                List.of(List.of("70 %", "d2o:a=1", "-0.0041", "0.0040", "a tie", "-0.42 %", "0.18", "")),
                tables.get("-pairs").rows());
    }

    @Test
    void aMarkdownTableIsTakenAsItIs() {
        Figures table = Figures.printed("AMD\n\n| kernel | us |\n| :-- | --: |\n| a | 1.5 |\n| b |  |\n\n| other |\n")
                .get("");
        assertEquals(List.of("kernel", "us"), table.columns());
        assertEquals("1.5", table.figure(List.of("a"), "us"));
        assertEquals("| kernel | us |\n| :-- | --: |\n| a | 1.5 |\n| b |  |\n", table.markdown());
    }

    @Test
    void anErrorIsNamedByTheColumnBeforeIt() {
        Figures table = new Figures(
                Map.of(), List.of("a", "PPL", "+/-", "KL", "+/-"), List.of(List.of("h2o", "17", "1", "0.02", "0.003")));
        assertEquals("0.003", table.figure(List.of("h2o"), "KL +/-"));
        assertThrows(KvmergeException.class, () -> table.figure(List.of("h2o"), "MiB"));
        assertThrows(KvmergeException.class, () -> table.figure(List.of("h2o"), "MiB +/-"));
    }

    @Test
    void whatHasNoTableIsRefused() {
        assertThrows(KvmergeException.class, () -> Figures.printed("kvmerge: no such file"));
    }

    @Test
    void aPageIsMadeOfFiguresAndFollowsThem() throws IOException {
        Files.createDirectories(docs.resolve("results"));
        Files.createDirectories(docs.resolve("templates"));
        Files.writeString(
                docs.resolve("results/alice.csv"),
                "# title: Alice\n# command: bin/kvmerge experiment\n# without: tokens/s, speed\nstrategy\n");
        Files.writeString(docs.resolve("results/alice-pairs.csv"), "# title: pairs\nagainst\n");
        Files.writeString(
                docs.resolve("templates/page.md"),
                "{{table alice | 70 %}}\n"
                        + "{{alice | 70 %, h2o | PPL}} {{alice | 70 %, h2o over 0 %, full | PPL}}\n{{made}}\n");
        Map<String, String> files = Pages.take(docs, "alice", EXPERIMENT, LocalDate.of(2026, 11, 26), "EPYC", "JDK 25");
        for (var file : files.entrySet()) {
            Files.writeString(docs.resolve(file.getKey()), file.getValue());
        }
        assertEquals("""
                <!-- Written by 'make docs' from docs/templates/page.md and docs/results: edit those. -->
                | strategy | cells | PPL | same top |
                | :-- | --: | --: | --: |
                | h2o | 1,229 | 17.665 | 91.8 % |
                | d2o:a=1 | 1,229 | 17.740 | 91.9 % |

                [alice](results/alice.csv)
                17.665 0.99
                | table | made by | when | on |
                | :-- | :-- | :-- | :-- |
                | alice | `bin/kvmerge experiment` | 2026-11-26 | EPYC; JDK 25 |
                """, Pages.render(docs).get("page.md"));
        assertTrue(Pages.problems(docs).contains("docs/results/alice-pairs.csv has no line '# command: '"));
        Files.writeString(docs.resolve("templates/page.md"), "{{alice | 70 %, h3o | PPL}}\n");
        String message =
                assertThrows(KvmergeException.class, () -> Pages.render(docs)).getMessage();
        assertTrue(message.contains("page.md") && message.contains("h3o"), message);
    }

    @Test
    void aRowThatLacksACellIsRefused() throws IOException {
        Path file = Files.writeString(docs.resolve("a.csv"), "a,b\n1\n");
        assertTrue(assertThrows(KvmergeException.class, () -> Figures.read(file))
                .getMessage()
                .contains("a.csv"));
    }
}
