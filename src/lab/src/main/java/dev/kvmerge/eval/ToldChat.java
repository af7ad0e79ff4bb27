package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.function.ToIntFunction;

/**
 * A conversation to calibrate on: a user tells things between sentences of a text, and an assistant says each again; or
 * the user sends one long text, in which they stand. At the end the user asks for them. So heads are seen to look for
 * what was said once, which a text of prose seldom has them do. No thing or value that is told is one of
 * {@link FactsChat}'s, so that those can be measured afterwards.
 */
public final class ToldChat {
    private static final int LEAST = 5; // things told

    private ToldChat() {}

    /** Something that is told. */
    private record Told(ToldWords.Kind kind, String thing, String value) {
        String statement() {
            return String.format(kind.statement(), thing, value);
        }

        String question() {
            return String.format(kind.question(), thing);
        }

        ChatMessage answer() {
            return ChatMessage.assistant(capital(statement()) + ".");
        }
    }

    /** How things are told. */
    public enum Form {
        /** A user tells them one after the other, between short sentences; an assistant answers. */
        TALK(2, 120, 120),
        /** They stand in one long text, which the user sends at the beginning. */
        TEXT(4, 400, 150);

        private static final int SHORT = 2048; // tokens of a conversation, of which a long passage is too much

        private final int sentences; // to each thing
        private final int longest; // characters of one
        private final int longestOfShort; // in a short conversation

        Form(int sentences, int longest, int longestOfShort) {
            this.sentences = sentences;
            this.longest = longest;
            this.longestOfShort = longestOfShort;
        }

        private int longest(int tokens) {
            return tokens < SHORT ? longestOfShort : longest;
        }
    }

    /**
     * Makes a conversation. Of a long one, what comes after all things is talk.
     *
     * @param text whose sentences stand between
     * @param tokens that it has to have; it has up to a turn or a passage more, with its question
     * @param length tokens of a conversation
     * @throws KvmergeException.Usage if the text has too few sentences, or so few tokens do not hold it
     * @throws KvmergeException if the length does not grow with the conversation
     */
    public static List<ChatMessage> make(
            Form form, String text, long seed, int tokens, ToIntFunction<List<ChatMessage>> length) {
        Random random = new Random(seed);
        List<String> sentences = sentences(text, form.longest(tokens), random);
        List<Told> all = things(random);
        List<ChatMessage> messages = new ArrayList<>();
        List<String> sent = new ArrayList<>();
        List<Told> told = new ArrayList<>();
        List<ChatMessage> whole = List.of();
        int has = 0;
        int since = 0; // characters, which are no fewer than tokens
        for (int next = 0; has < tokens; next += form.sentences) {
            if (next + form.sentences > sentences.size()) {
                throw new KvmergeException.Usage(
                        "it has " + sentences.size() + " sentences of at most " + form.longest(tokens)
                                + " characters that end with a stop, too few for a conversation of "
                                + tokens + " tokens");
            }
            List<String> between = sentences.subList(next, next + form.sentences);
            Told one = told.size() < all.size() ? all.get(told.size()) : null;
            if (one != null) {
                told.add(one);
            }
            since += form == Form.TALK ? talk(messages, one, between, random) : write(sent, one, between, random);
            if (has + since >= tokens) { // only now, since a template's writing takes time
                whole = asked(messages, sent, told, random);
                int now = length.applyAsInt(whole);
                if (now <= has) {
                    throw new KvmergeException("the model's chat template does not write all messages of a"
                            + " conversation, so that none can be calibrated on: give --conversations 0");
                }
                has = now;
                since = 0;
            }
        }
        if (told.size() < LEAST) {
            throw new KvmergeException.Usage(
                    "a conversation of " + tokens + " tokens tells " + told.size() + " things, fewer than " + LEAST);
        }
        return whole;
    }

    /** A turn, with a thing or without; how many characters it has. */
    private static int talk(List<ChatMessage> messages, Told one, List<String> between, Random random) {
        String said = between.getFirst();
        String answer = between.getLast();
        if (one != null) {
            said += " " + capital(choose(ToldWords.LEADS, random) + one.statement()) + ". " + answer;
            answer = capital(String.format(choose(ToldWords.ANSWERS, random), one.statement()));
        }
        messages.add(ChatMessage.user(said));
        messages.add(ChatMessage.assistant(answer));
        return said.length() + answer.length();
    }

    /** A passage of what is sent, with a thing in it or without; how many characters it has. */
    private static int write(List<String> sent, Told one, List<String> between, Random random) {
        List<String> passage = new ArrayList<>(between);
        if (one != null) {
            passage.add(random.nextInt(between.size()), capital(one.statement()) + ".");
        }
        sent.add(String.join(" ", passage));
        return sent.getLast().length() + 1;
    }

    private static String capital(String text) {
        return Character.toUpperCase(text.charAt(0)) + text.substring(1);
    }

    /** All things that can be told, each with a value. */
    private static List<Told> things(Random random) {
        List<Told> all = new ArrayList<>();
        for (ToldWords.Kind kind : ToldWords.KINDS) {
            List<String> values = new ArrayList<>(kind.values());
            Collections.shuffle(values, random);
            for (int i = 0; i < kind.things().size(); i++) {
                all.add(new Told(kind, kind.things().get(i), values.get(i)));
            }
        }
        Collections.shuffle(all, random);
        return all;
    }

    /** What was said, or sent, and a question and an answer about each thing, in an order of their own. */
    private static List<ChatMessage> asked(
            List<ChatMessage> messages, List<String> sent, List<Told> told, Random random) {
        List<ChatMessage> whole = new ArrayList<>(messages);
        List<Told> order = new ArrayList<>(told);
        Collections.shuffle(order, random);
        String text = sent.isEmpty() ? "" : ToldWords.SENT + String.join(" ", sent) + "\n\n";
        for (Told one : order) {
            whole.add(ChatMessage.user(text + one.question()));
            whole.add(one.answer());
            text = "";
        }
        return whole;
    }

    private static String choose(List<String> of, Random random) {
        return of.get(random.nextInt(of.size()));
    }

    /** Those that are short enough, from somewhere in the text on, and then from its beginning. */
    private static List<String> sentences(String text, int longest, Random random) {
        List<String> found = new ArrayList<>();
        for (String sentence : Text.sentences(text)) {
            String line = sentence.strip().replaceAll("\\s+", " ");
            if (line.length() <= longest && line.contains(" ")) {
                found.add(line);
            }
        }
        if (!found.isEmpty()) {
            Collections.rotate(found, random.nextInt(found.size()));
        }
        return found;
    }
}
