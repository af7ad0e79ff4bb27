package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;

/** The kinds of tasks of RULER (Hsieh et al., 2024, arXiv:2404.06654) that are made here, by its names. */
public enum RulerTask {
    /** One number in prose. */
    NIAH_SINGLE_2(Kind.SINGLE, 24),
    /** One of five numbers that are told for different keys in prose. */
    NIAH_MULTIKEY_1(Kind.NEEDLES, 24),
    /** The numbers of four of the keys at once. */
    NIAH_MULTIQUERY(Kind.NEEDLES, 96),
    /** The four numbers that are told for one key. */
    NIAH_MULTIVALUE(Kind.NEEDLES, 64),
    /** One number of a text that has nothing but keys and numbers. */
    NIAH_MULTIKEY_2(Kind.KEYS, 24),
    /** Variable tracking: all variables of a chain of assignments. */
    VT(Kind.CHAINS, 48),
    /** Common words extraction: the ten words that come most often in a list. */
    CWE(Kind.WORDS, 80),
    /** Frequent words extraction: the three invented words that come most often. */
    FWE(Kind.CODES, 40);

    /** A kind of text. All tasks of a kind are asked of the same text, which is read once. */
    enum Kind {
        SINGLE,
        NEEDLES,
        KEYS,
        CHAINS,
        WORDS,
        CODES
    }

    private final Kind kind;
    private final int answer;

    RulerTask(Kind kind, int answer) {
        this.kind = kind;
        this.answer = answer;
    }

    Kind kind() {
        return kind;
    }

    /** Most tokens of an answer. */
    int answer() {
        return answer;
    }

    /** RULER's name. */
    public String label() {
        return name().toLowerCase(Locale.ROOT);
    }

    /**
     * The tasks of these names, in this enum's order.
     *
     * @throws KvmergeException.Usage if there is no such task
     */
    public static List<RulerTask> of(List<String> labels) {
        for (String label : labels) {
            if (Arrays.stream(values()).noneMatch(task -> task.label().equals(label))) {
                throw new KvmergeException.Usage("--tasks: there is no task '" + label + "'; there are "
                        + Arrays.stream(values()).map(RulerTask::label).collect(Collectors.joining(", ")));
            }
        }
        return Arrays.stream(values())
                .filter(task -> labels.contains(task.label()))
                .toList();
    }
}
