package dev.kvmerge.report;

import dev.kvmerge.eval.Facts;
import dev.kvmerge.eval.Ruler;
import dev.kvmerge.eval.RunResult;
import java.lang.reflect.RecordComponent;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/** What has to hold of results that were read from a file, so that everything behind it can rely on them. */
final class ReportCheck {
    /** Something is missing or cannot be. */
    static final class Wrong extends Exception {
        private static final long serialVersionUID = 1L;

        Wrong(String message) {
            super(message);
        }
    }

    /** Beside the boxed numbers of a run, which are null where a figure does not exist; and in older files. */
    private static final Set<String> MAY_BE_MISSING = Set.of(
            "machine",
            "options",
            "gpu",
            "headDim",
            "type",
            "RunResult.flashAttention",
            "RunResult.observation",
            "RunResult.asked");

    private static final int MOST_PARAMETERS = 1000;

    private ReportCheck() {}

    static void check(Report report) throws Wrong {
        if (report == null) {
            throw new Wrong("there is nothing in it");
        }
        whole(report, "");
        given(report.options());
        for (int i = 0; i < report.runs().size(); i++) {
            RunResult run = report.runs().get(i);
            String where = "runs[" + i + "].";
            if (run == null) {
                throw new Wrong("runs[" + i + "] is null");
            }
            whole(run, where);
            positive(where + "tokens", run.tokens());
            if (run.cells() < 0 || run.scored() < 0) {
                throw new Wrong(where + "cells or scored is negative");
            }
            if (!(run.compression() >= 0 && run.compression() < 1)) {
                throw new Wrong(where + "compression is not in 0..1: " + run.compression());
            }
            if (run.parameters().size() > MOST_PARAMETERS) {
                throw new Wrong(where + "parameters are " + run.parameters().size());
            }
        }
        positive("settings.tokens", report.settings().tokens());
    }

    static void check(FactsReport report) throws Wrong {
        if (report == null) {
            throw new Wrong("there is nothing in it");
        }
        whole(report, "");
        given(report.options());
        for (int i = 0; i < report.runs().size(); i++) {
            Facts.Run run = report.runs().get(i);
            String where = "runs[" + i + "].";
            if (run == null) {
                throw new Wrong("runs[" + i + "] is null");
            }
            whole(run, where);
            positive(where + "tokens", run.tokens());
            if (run.cells() < 0) {
                throw new Wrong(where + "cells is negative");
            }
            if (run.answers().isEmpty() || run.checks().isEmpty()) {
                throw new Wrong(where + "answers or checks are none");
            }
            for (Facts.Answer answer : run.answers()) {
                answered(where + "answers", answer, answer == null ? 0 : answer.rank());
            }
            for (Facts.Check check : run.checks()) {
                answered(where + "checks", check, check == null ? 0 : check.rank());
            }
        }
    }

    static void check(RulerReport report) throws Wrong {
        if (report == null) {
            throw new Wrong("there is nothing in it");
        }
        whole(report, "");
        given(report.options());
        if (report.settings().tasks().stream().anyMatch(Objects::isNull)) {
            throw new Wrong("settings.tasks has a null");
        }
        for (int i = 0; i < report.readings().size(); i++) {
            Ruler.Reading reading = report.readings().get(i);
            String where = "readings[" + i + "].";
            if (reading == null) {
                throw new Wrong("readings[" + i + "] is null");
            }
            whole(reading, where);
            positive(where + "item.tokens", reading.item().tokens());
            if (reading.item().index() < 0) {
                throw new Wrong(where + "item.index is negative");
            }
            if (!(reading.compression() >= 0 && reading.compression() < 1)) {
                throw new Wrong(where + "compression is not in 0..1: " + reading.compression());
            }
            for (Ruler.Answer answer : reading.answers()) {
                if (answer == null) {
                    throw new Wrong(where + "answers has a null");
                }
                whole(answer, where + "answers.");
                positive(where + "answers.expected", answer.expected().size());
                if (answer.found() < 0 || answer.found() > answer.expected().size()) {
                    throw new Wrong(where + "answers.found is " + answer.found());
                }
            }
        }
    }

    private static void given(Map<String, String> options) throws Wrong {
        if (options != null && options.containsValue(null)) {
            throw new Wrong("options has a null");
        }
    }

    private static void answered(String where, Record answer, int rank) throws Wrong {
        if (answer == null) {
            throw new Wrong(where + " has a null");
        }
        whole(answer, where + ".");
        positive(where + ".rank", rank);
    }

    private static void positive(String name, int value) throws Wrong {
        if (value <= 0) {
            throw new Wrong(name + " is " + value + ", or missing");
        }
    }

    /** Every part that has to be there is, in the records within too. */
    private static void whole(Record value, String where) throws Wrong {
        for (RecordComponent part : value.getClass().getRecordComponents()) {
            Object x;
            try {
                x = part.getAccessor().invoke(value);
            } catch (ReflectiveOperationException e) {
                throw new IllegalStateException(e);
            }
            String name = where + part.getName();
            Class<?> type = part.getType();
            boolean needed = type == String.class || type == List.class || type == Map.class || type.isRecord();
            boolean optional = MAY_BE_MISSING.contains(part.getName())
                    || MAY_BE_MISSING.contains(value.getClass().getSimpleName() + "." + part.getName());
            if (x == null && needed && !optional) {
                throw new Wrong(name + " is missing");
            }
            if (x instanceof Record inner) {
                whole(inner, name + ".");
            }
        }
    }
}
