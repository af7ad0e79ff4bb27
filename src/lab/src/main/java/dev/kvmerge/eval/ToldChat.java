package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.function.ToIntFunction;
import java.util.stream.IntStream;

/**
 * A conversation to calibrate on: a user tells things between sentences of a text, an assistant says each again, and at
 * the end the user asks for them. So heads are seen to look for what was said once, which a text of prose seldom has
 * them do. No thing or value that is told is one of {@link FactsChat}'s, so that those can be measured afterwards.
 */
public final class ToldChat {
    private static final int LEAST = 10; // things told
    private static final int LONGEST = 120; // characters of a sentence: talk is short

    /**
     * What can be told.
     *
     * @param statement with {@code %s} for the thing and then the value; the answer too
     * @param question with {@code %s} for the thing
     */
    record Kind(String statement, String question, List<String> things, List<String> values) {}

    static final List<Kind> KINDS = List.of(
            new Kind(
                    "the code of the %s is %s",
                    "What is the code of the %s?",
                    words("garage,front gate,safe,bicycle lock,mailbox,storage room,parking lot,locker,burglar alarm"
                            + ",wireless network"),
                    numbers(1013, 9973, 97)),
            new Kind(
                    "the birthday of %s is on %s",
                    "On which day is the birthday of %s?",
                    words("Anna,Peter,Maria,Thomas,Laura,Martin,Sophie,Daniel,Julia,Simon"),
                    dates()),
            new Kind(
                    "the %s is in the %s",
                    "Where is the %s?",
                    words("passport,spare key,torch,first aid kit,camera,sewing kit,toolbox,charger,old atlas,tent"),
                    words("top drawer,attic,blue box,car boot,bathroom cabinet,desk,wardrobe,shed,kitchen shelf"
                            + ",brown suitcase")),
            new Kind(
                    "the %s cost %s euros",
                    "How much did the %s cost?",
                    words("sofa,dishwasher,trampoline,lawnmower,fridge,tablet,oven,bookcase,treadmill,armchair"),
                    numbers(19, 990, 13)),
            new Kind(
                    "the %s begins at %s",
                    "At what time does the %s begin?",
                    words("yoga class,parents' evening,choir practice,cycling tour,board meeting,chess club,auction"
                            + ",sailing lesson,book group,flower show"),
                    times()));

    static final List<String> LEADS =
            List.of("Before I forget, ", "Remember that ", "You should know that ", "Note that ");

    static final List<String> ANSWERS =
            List.of("I have written down that %s.", "Understood, %s.", "All right: %s.", "So %s. Fine.");

    private ToldChat() {}

    /** Something that is told. */
    private record Told(Kind kind, String thing, String value) {
        String statement() {
            return String.format(kind.statement(), thing, value);
        }

        ChatMessage question() {
            return ChatMessage.user(String.format(kind.question(), thing));
        }

        ChatMessage answer() {
            String said = statement();
            return ChatMessage.assistant(Character.toUpperCase(said.charAt(0)) + said.substring(1) + ".");
        }
    }

    /**
     * Makes a conversation. Of a long one, what comes after all things is talk.
     *
     * @param text to talk with
     * @param tokens that it has to have; it has up to a turn more
     * @param length tokens of a conversation
     * @throws KvmergeException.Usage if the text has too few short sentences, or so few tokens do not hold it
     * @throws KvmergeException if the length does not grow with the conversation
     */
    public static List<ChatMessage> make(String text, long seed, int tokens, ToIntFunction<List<ChatMessage>> length) {
        Random random = new Random(seed);
        List<String> talk = sentences(text, random);
        List<Told> all = things(random);
        List<ChatMessage> messages = new ArrayList<>();
        List<Told> told = new ArrayList<>();
        List<ChatMessage> whole = List.of();
        int has = 0;
        int since = 0; // characters, which are no fewer than tokens
        for (int next = 0; has < tokens; next += 2) {
            if (next + 2 > talk.size()) {
                throw new KvmergeException.Usage("it has " + talk.size() + " sentences of at most " + LONGEST
                        + " characters that end with a stop, and a conversation of " + tokens
                        + " tokens takes more: use a longer text, or fewer --tokens");
            }
            List<ChatMessage> turn = new ArrayList<>();
            if (told.size() < all.size()) {
                Told one = all.get(told.size());
                told.add(one);
                turn.add(ChatMessage.user(
                        talk.get(next) + " " + choose(LEADS, random) + one.statement() + ". " + talk.get(next + 1)));
                turn.add(ChatMessage.assistant(String.format(choose(ANSWERS, random), one.statement())));
            } else {
                turn.add(ChatMessage.user(talk.get(next)));
                turn.add(ChatMessage.assistant(talk.get(next + 1)));
            }
            messages.addAll(turn);
            since += turn.stream().mapToInt(m -> m.content().length()).sum();
            if (has + since >= tokens) { // only now, since a template's writing takes time
                whole = asked(messages, told, random);
                int now = length.applyAsInt(whole);
                if (now <= has) {
                    throw new KvmergeException("the model's chat template does not write all messages of a"
                            + " conversation, so that none can be calibrated on: leave out --conversations");
                }
                has = now;
                since = 0;
            }
        }
        if (told.size() < LEAST) {
            throw new KvmergeException.Usage("a conversation of " + tokens + " tokens tells " + told.size()
                    + " things, fewer than " + LEAST + ": give more --tokens");
        }
        return whole;
    }

    /** All things that can be told, each with a value. */
    private static List<Told> things(Random random) {
        List<Told> all = new ArrayList<>();
        for (Kind kind : KINDS) {
            List<String> values = new ArrayList<>(kind.values());
            Collections.shuffle(values, random);
            for (int i = 0; i < kind.things().size(); i++) {
                all.add(new Told(kind, kind.things().get(i), values.get(i)));
            }
        }
        Collections.shuffle(all, random);
        return all;
    }

    /** The conversation with a question and an answer about each thing, in an order of their own. */
    private static List<ChatMessage> asked(List<ChatMessage> messages, List<Told> told, Random random) {
        List<ChatMessage> whole = new ArrayList<>(messages);
        List<Told> order = new ArrayList<>(told);
        Collections.shuffle(order, random);
        for (Told one : order) {
            whole.add(one.question());
            whole.add(one.answer());
        }
        return whole;
    }

    private static String choose(List<String> of, Random random) {
        return of.get(random.nextInt(of.size()));
    }

    /** Short ones, from somewhere in the text on, and then from its beginning. */
    private static List<String> sentences(String text, Random random) {
        List<String> found = new ArrayList<>();
        for (String sentence : Text.sentences(text)) {
            String line = sentence.strip().replaceAll("\\s+", " ");
            if (line.length() <= LONGEST && line.contains(" ")) {
                found.add(line);
            }
        }
        if (!found.isEmpty()) {
            Collections.rotate(found, random.nextInt(found.size()));
        }
        return found;
    }

    private static List<String> words(String all) {
        return List.of(all.split(","));
    }

    private static List<String> numbers(int from, int to, int apart) {
        return IntStream.iterate(from, n -> n <= to, n -> n + apart)
                .mapToObj(Integer::toString)
                .toList();
    }

    private static List<String> dates() {
        List<String> months = words("January,February,March,April,June,July,August,September,October");
        List<String> all = new ArrayList<>();
        for (String month : months) {
            for (int day = 1; day <= 28; day++) {
                all.add(day + " " + month);
            }
        }
        return all;
    }

    private static List<String> times() {
        List<String> all = new ArrayList<>();
        for (int minutes = 8 * 60; minutes < 22 * 60; minutes += 5) {
            all.add(String.format(Locale.ROOT, "%d:%02d", minutes / 60, minutes % 60));
        }
        return all;
    }
}
