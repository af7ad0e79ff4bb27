package dev.kvmerge.report;

import dev.kvmerge.eval.Facts.Answer;
import dev.kvmerge.eval.Facts.Check;
import dev.kvmerge.eval.Facts.Run;
import dev.kvmerge.eval.FactsChat;
import dev.kvmerge.eval.Proportion;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.function.Predicate;
import java.util.stream.IntStream;

/** What caches remember of a conversation: its facts, and the system prompt's rule. */
public final class FactsTable {
    private static final int QUARTERS = 4;

    private FactsTable() {}

    /** Recall of the facts: said, and the likeliest of forty, over all and by when they were told. */
    public static String facts(List<Run> runs) {
        return Table.align(factsRows(runs));
    }

    /** The same in cells, the first row the columns' names. */
    static List<String[]> factsRows(List<Run> runs) {
        List<String[]> rows = new ArrayList<>();
        rows.add(new String[] {
            "cache", "cells", "said", "95 %", "likeliest", "95 %", "1st quarter", "2nd", "3rd", "last", "nats", "+/-"
        });
        for (Run run : runs) {
            List<Answer> answers = run.answers();
            Proportion said = of(answers, Answer::right);
            Proportion likeliest = likeliest(run);
            List<String> row = new ArrayList<>(List.of(
                    run.cache(), cells(run), share(said), interval(said), share(likeliest), interval(likeliest)));
            for (int q = 0; q < QUARTERS; q++) {
                List<Answer> part = answers.subList(q * answers.size() / QUARTERS, (q + 1) * answers.size() / QUARTERS);
                row.add(share(of(part, a -> a.rank() == 1)));
            }
            double[] nats = answers.stream().mapToDouble(Answer::nats).toArray();
            row.add(number(mean(nats)));
            row.add(number(error(nats)));
            rows.add(row.toArray(String[]::new));
        }
        return rows;
    }

    /** How often the rule is obeyed, and its word is the likeliest of forty, over all and by how much was read. */
    public static String rule(List<Run> runs) {
        return Table.align(ruleRows(runs));
    }

    /** The same in cells, the first row the columns' names. */
    static List<String[]> ruleRows(List<Run> runs) {
        List<Integer> points =
                runs.getFirst().checks().stream().map(Check::tokens).distinct().toList();
        List<String[]> rows = new ArrayList<>();
        List<String> head = new ArrayList<>(List.of("rule", "cells", "obeyed", "95 %", "likeliest", "95 %"));
        points.forEach(p -> head.add(String.format(Locale.ROOT, "at %,d", p)));
        rows.add(head.toArray(String[]::new));
        for (Run run : runs) {
            Proportion obeyed = of(run.checks(), Check::obeyed);
            Proportion likeliest = of(run.checks(), c -> c.rank() == 1);
            List<String> row = new ArrayList<>(List.of(
                    run.cache(), cells(run), share(obeyed), interval(obeyed), share(likeliest), interval(likeliest)));
            for (int point : points) {
                row.add(share(of(
                        run.checks().stream().filter(c -> c.tokens() == point).toList(), c -> c.rank() == 1)));
            }
            rows.add(row.toArray(String[]::new));
        }
        return rows;
    }

    /** One row a question. */
    public static String csv(List<Run> runs) {
        StringBuilder text =
                new StringBuilder("cache,cells,about,after,question,expected,said,right,rank,nats,parameters\n");
        for (Run run : runs) {
            for (Answer a : run.answers()) {
                line(
                        text,
                        run,
                        a.kind(),
                        run.tokens(),
                        a.question(),
                        a.value(),
                        a.said(),
                        a.right(),
                        a.rank(),
                        a.nats());
            }
            for (Check c : run.checks()) {
                line(text, run, "rule", c.tokens(), c.question(), "", c.said(), c.obeyed(), c.rank(), c.nats());
            }
        }
        return text.toString();
    }

    private static void line(StringBuilder text, Run run, Object... cells) {
        text.append(ResultsFolder.quoted(run.cache())).append(',').append(run.cells());
        for (Object cell : cells) {
            text.append(',').append(ResultsFolder.quoted(cell));
        }
        text.append(',').append(ResultsFolder.quoted(run.parameters())).append('\n');
    }

    /** What the columns mean. */
    public static String legend() {
        return String.format(
                Locale.ROOT,
                "said: the greedy answer has the value. likeliest: of the forty values of its kind, the conversation "
                        + "has"
                        + " made this one%nlikelier than any other (a blind guess: 1 in %d, %.2f nats). 95 %%: Wilson's"
                        + " interval.%n",
                FactsChat.VALUES,
                Math.log(FactsChat.VALUES));
    }

    private static String cells(Run run) {
        return String.format(Locale.ROOT, "%,d", run.cells() == 0 ? run.tokens() : run.cells());
    }

    /** The same, where caches of one name had several settings each named with its own. */
    static List<Run> toldApart(List<Run> runs) {
        return Table.toldApart(
                runs,
                Run::cache,
                Run::parameters,
                (r, name) -> new Run(
                        name,
                        r.parameters(),
                        r.cells(),
                        r.allocated(),
                        r.used(),
                        r.tokens(),
                        r.seconds(),
                        r.answers(),
                        r.checks()));
    }

    /** The facts whose value is the likeliest of its kind. */
    static Proportion likeliest(Run run) {
        return of(run.answers(), a -> a.rank() == 1);
    }

    private static <T> Proportion of(List<T> all, Predicate<T> hit) {
        return new Proportion((int) all.stream().filter(hit).count(), all.size());
    }

    private static String share(Proportion p) {
        return p.of() == 0 ? "-" : String.format(Locale.ROOT, "%.0f %%", 100 * p.share());
    }

    private static String interval(Proportion p) {
        return String.format(Locale.ROOT, "%.0f-%.0f", 100 * p.low(), 100 * p.high());
    }

    private static String number(double x) {
        return String.format(Locale.ROOT, "%.2f", x);
    }

    private static double mean(double[] x) {
        return java.util.Arrays.stream(x).average().orElse(Double.NaN);
    }

    /** Standard error of the mean. */
    private static double error(double[] x) {
        double mean = mean(x);
        double squares = IntStream.range(0, x.length)
                .mapToDouble(i -> (x[i] - mean) * (x[i] - mean))
                .sum();
        return Math.sqrt(squares / (x.length - 1) / x.length);
    }
}
