package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.LlamaLibrary;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The pages of docs that show figures: made of docs/templates, which hold the words, and docs/results, which hold the
 * figures. In a template, NAME is a file of docs/results without its ending:
 *
 * <pre>
 * {{table NAME}}                         the table
 * {{table NAME | 70 %}}                  its rows that begin with 70 %, without that column
 * {{NAME | 70 %, h2o | KL}}              one figure, by the first cells of its row and its column
 * {{NAME | 70 %, a over 70 %, h2o | KL}} how many times the second figure the first is
 * {{made}}                               how each table of the page was made
 * {{llama.cpp}}                          the version of it that kvmerge is for
 * </pre>
 */
public final class Pages {
    private static final Pattern TAG = Pattern.compile("\\{\\{(.*?)}}");

    private final Path docs;
    private final Map<String, Figures> results = new TreeMap<>();

    private Pages(Path docs) {
        this.docs = docs;
        for (Path file : files(docs.resolve("results"), ".csv")) {
            results.put(file.getFileName().toString().replace(".csv", ""), Figures.read(file));
        }
    }

    /**
     * Renders every template.
     *
     * @param docs the folder docs of a checkout
     * @return pages by their path within docs; README.md lies above it
     * @throws KvmergeException naming the template that asks for a table or figure that is not there
     */
    public static Map<String, String> render(Path docs) {
        Pages pages = new Pages(docs);
        Map<String, String> texts = new TreeMap<>();
        for (Path template : files(docs.resolve("templates"), ".md")) {
            try {
                String name = template.getFileName().toString();
                texts.put(name.equals("README.md") ? "../README.md" : name, pages.page(template));
            } catch (IOException e) {
                throw new KvmergeException("cannot read " + template + ": " + e, e);
            } catch (KvmergeException e) {
                throw new KvmergeException(template + ": " + e.getMessage(), e);
            }
        }
        return texts;
    }

    /** The README's plot, as SVG. */
    public static String plot(Path docs) {
        Path results = docs.resolve("results");
        return ReadmePlot.of(Figures.read(results.resolve("cells.csv")), Figures.read(results.resolve("alice.csv")));
    }

    /** The plot of divergence over memory, as SVG. */
    public static String frontier(Path docs) {
        return Frontier.plot(
                Figures.read(docs.resolve("results/memory-alice.csv")),
                "What less memory costs, SmolLM2-135M, Alice, 4,096 tokens");
    }

    /** The plot of a token's time over the length of the text, as SVG. */
    public static String lengths(Path docs) {
        return LengthPlot.of(
                Figures.read(docs.resolve("results/lengths.csv")),
                "A token's time by the length of the text, SmolLM2-135M, one CPU core");
    }

    private static List<Path> files(Path folder, String ending) {
        try (Stream<Path> files = Files.list(folder)) {
            return files.filter(f -> f.toString().endsWith(ending)).sorted().toList();
        } catch (IOException e) {
            throw new KvmergeException("cannot read the folder " + folder + ": " + e, e);
        }
    }

    private String page(Path template) throws IOException {
        String name = template.getFileName().toString();
        String text = Files.readString(template);
        Set<String> used = new LinkedHashSet<>();
        String filled = TAG.matcher(text).replaceAll(tag -> {
            String[] word = tag.group(1).split(" *\\| *");
            if (word[0].equals("made")) {
                return tag.group(); // when all is known
            }
            if (word[0].equals("llama.cpp")) {
                return LlamaLibrary.VERSION;
            }
            boolean table = word[0].startsWith("table ");
            String source = table ? word[0].substring("table ".length()).strip() : word[0].strip();
            Figures figures = results.get(source);
            if (figures == null) {
                throw new KvmergeException("no docs/results/" + source + ".csv for " + tag.group());
            }
            used.add(source);
            if (table) {
                Figures shown = word.length > 1 ? figures.part(key(word[1])) : figures;
                return Matcher.quoteReplacement(shown.markdown() + "\n[" + source + "](results/" + source + ".csv)");
            }
            String[] rows = word[1].split(" over ");
            String first = figures.figure(key(rows[0]), word[2]);
            return Matcher.quoteReplacement(
                    rows.length == 1 ? first : Figures.ratio(first, figures.figure(key(rows[1]), word[2])));
        });
        return "<!-- Written by 'make docs' from docs/templates/" + name + " and docs/results: edit those. -->\n"
                + filled.replace("{{made}}", made(used));
    }

    private static List<String> key(String cells) {
        return List.of(cells.strip().split(", "));
    }

    private String made(Set<String> used) {
        StringBuilder text = new StringBuilder("| table | made by | when | on |\n| :-- | :-- | :-- | :-- |\n");
        for (String name : used) {
            if (name.endsWith("-pairs")) {
                continue; // printed with the table it belongs to
            }
            Map<String, String> about = results.get(name).about();
            String how = about.containsKey("command") ? "`" + about.get("command") + "`" : about.get("how");
            text.append("| ")
                    .append(String.join(" | ", name, how, about.get("date"), about.get("machine")))
                    .append("; ")
                    .append(about.get("versions"))
                    .append(" |\n");
        }
        return text.toString().stripTrailing();
    }

    /**
     * Puts what a command printed into docs/results, in place of what the file had; what is said of it there stays, but
     * for date, machine and versions.
     *
     * @param name of the file, without its ending
     * @return files by their path within docs
     * @throws KvmergeException if the file is not there (it has the command) or nothing was printed that is a table
     */
    public static Map<String, String> take(
            Path docs, String name, String printed, LocalDate date, String machine, String versions) {
        Map<String, String> files = new LinkedHashMap<>();
        Figures.printed(printed).forEach((suffix, figures) -> {
            Path file = docs.resolve("results/" + name + suffix + ".csv");
            if (!Files.exists(file)) {
                throw new KvmergeException(
                        file + " is not there: make it, with the lines '# title: ' and '# command: '");
            }
            Map<String, String> about = new LinkedHashMap<>(Figures.read(file).about());
            about.put("date", date.toString());
            about.put("machine", machine);
            about.put("versions", versions);
            files.put("results/" + name + suffix + ".csv", figures.about(about).csv());
        });
        return files;
    }

    /**
     * What lacks in the files of docs/results: each says its title, date, machine, versions, and a command or how else.
     */
    public static List<String> problems(Path docs) {
        Pages pages = new Pages(docs);
        return pages.results.entrySet().stream()
                .flatMap(e -> Stream.of("title", "date", "machine", "versions", "command")
                        .filter(key -> !e.getValue().about().containsKey(key)
                                && !(key.equals("command")
                                        && e.getValue().about().containsKey("how")))
                        .map(key -> "docs/results/" + e.getKey() + ".csv has no line '# " + key + ": '"))
                .toList();
    }
}
