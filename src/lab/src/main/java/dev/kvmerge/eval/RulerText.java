package dev.kvmerge.eval;

import java.util.List;
import java.util.Locale;

/**
 * A text with questions about it.
 *
 * @param text what is said before it, and an example where the task has one, included
 * @param questions of all tasks of its kind
 */
record RulerText(String text, List<Question> questions) {
    /**
     * A question.
     *
     * @param lead how the answer begins; the model goes on from there
     * @param expected what the answer has to contain
     */
    record Question(RulerTask task, String question, String lead, List<String> expected) {}

    RulerText {
        questions = List.copyOf(questions);
    }

    /** RULER's string match: how many of the expected answers the text contains, whatever its letters' case. */
    static int matches(String said, List<String> expected) {
        String lower = said.toLowerCase(Locale.ROOT);
        return (int) expected.stream()
                .filter(answer -> lower.contains(answer.toLowerCase(Locale.ROOT)))
                .count();
    }
}
