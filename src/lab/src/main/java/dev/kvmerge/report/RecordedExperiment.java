package dev.kvmerge.report;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.eval.Experiment;
import dev.kvmerge.eval.RunResult;
import dev.kvmerge.eval.Trace;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.BooleanSupplier;

/** An experiment whose runs are kept in a results folder: each is written when it is made, and not made again. */
public final class RecordedExperiment {
    private final Experiment experiment;
    private final Report header;
    private final ResultsFolder folder;
    private final Map<String, Experiment.Outcome> done = new LinkedHashMap<>(); // by the run's id

    /**
     * Starts, or goes on.
     *
     * @param header what results.json says of the experiment, without runs
     * @param resume whether the runs that the folder holds are taken over; else what an experiment left there goes
     * @throws KvmergeException.Usage if those are of another experiment
     */
    public RecordedExperiment(Experiment experiment, Report header, ResultsFolder folder, boolean resume) {
        this.experiment = experiment;
        this.header = header;
        this.folder = folder;
        if (resume && folder.hasResults()) {
            takeOver(folder.read());
        } else {
            folder.clear();
        }
    }

    /** Takes over the runs that are whole on disk and belong to this experiment. */
    private void takeOver(Report before) {
        List<String> differences = before.differences(header);
        if (!differences.isEmpty()) {
            throw new KvmergeException.Usage("the results in " + folder.path()
                    + " are of another experiment (" + String.join("; ", differences)
                    + "): give the same options, or choose another --out");
        }
        for (Experiment.Run run : experiment.runs()) {
            before.runs().stream()
                    .filter(r -> r.id().equals(run.id()) && r.cells() == run.cells() && sameParameters(r, run))
                    .findFirst()
                    .ifPresent(result -> {
                        Trace trace = folder.readTrace(run.id(), result.tokens());
                        if (trace != null) {
                            done.put(run.id(), new Experiment.Outcome(result, trace));
                        }
                    });
        }
        // The runs that are left have to be compared with the full cache's predictions. Without those, the full run
        // is made again.
        if (!missing().isEmpty() && !experiment.hasFullPredictions()) {
            done.remove(full().id());
        }
    }

    private static boolean sameParameters(RunResult result, Experiment.Run run) {
        return result.parameters().toString().equals(run.parameters().toString());
    }

    private Experiment.Run full() {
        return experiment.runs().getFirst();
    }

    /** The experiment's runs that are not made yet, in their order: the full cache's is the first. */
    public List<Experiment.Run> missing() {
        Set<String> seen = new HashSet<>(done.keySet()); // a run that was asked for twice is made once
        return experiment.runs().stream().filter(run -> seen.add(run.id())).toList();
    }

    /**
     * Makes one run and writes it, with all that were made before.
     *
     * @throws Experiment.Cancelled if asked to stop; the folder holds the runs before this one
     */
    public RunResult make(Experiment.Run run, Experiment.Listener listener, BooleanSupplier cancelled) {
        Experiment.Outcome outcome = experiment.make(run, done.get(full().id()), listener, cancelled);
        done.put(run.id(), outcome);
        folder.writeTrace(run.id(), outcome.trace());
        folder.write(report());
        return outcome.result();
    }

    /** What results.json says, with the runs that were made. */
    public Report report() {
        return header.with(results());
    }

    /** What results.json says of the experiment, without runs. */
    public Report header() {
        return header;
    }

    /** The figures of a run that was made; null of another. */
    public RunResult result(Experiment.Run run) {
        Experiment.Outcome outcome = done.get(run.id());
        return outcome == null ? null : outcome.result();
    }

    /** The figures of all runs that were made, in the experiment's order: the full cache's first. */
    public List<RunResult> results() {
        return experiment.runs().stream()
                .map(Experiment.Run::id)
                .distinct()
                .map(done::get)
                .filter(Objects::nonNull)
                .map(Experiment.Outcome::result)
                .toList();
    }

    /** The token-by-token figures of all runs that were made, by the run's id. */
    public Map<String, Trace> traces() {
        Map<String, Trace> traces = new LinkedHashMap<>();
        done.forEach((id, outcome) -> traces.put(id, outcome.trace()));
        return traces;
    }
}
