package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A conversation in which a user tells an assistant forty facts, between plain talk: of ten people four things each.
 * Names and values are drawn by a seed, so that nothing but the conversation tells them.
 *
 * @param messages the system prompt, then user and assistant in turn
 * @param facts in the order that they are told
 * @param opener what the system prompt wants answers to questions to begin with
 * @param openers the forty words of which that is one
 * @param points numbers of messages after which the rule is checked; the last is all
 */
public record FactsChat(
        List<ChatMessage> messages, List<Fact> facts, String opener, List<String> openers, List<Integer> points) {
    /** Values of a kind, of which one is right. */
    public static final int VALUES = 40;

    /** Facts that a conversation can have: of ten people four. */
    public static final int MOST = FactsWords.PEOPLE.size() * FactsWords.KINDS.size();

    private static final Pattern CHOICE = Pattern.compile("\\{([^{}]*)}");
    private static final double[] POINTS = {0.05, 0.25, 0.5, 0.75, 1}; // as shares of the facts

    /**
     * A fact.
     *
     * @param kind pet, town, work or food
     * @param message its number
     * @param lead how an answer begins; the value comes next
     * @param values the forty of its kind
     */
    public record Fact(String kind, int message, String question, String lead, String value, List<String> values) {}

    public FactsChat {
        messages = List.copyOf(messages);
        facts = List.copyOf(facts);
        points = List.copyOf(points);
    }

    /**
     * Makes a conversation.
     *
     * @param count facts, at most {@link #MOST}
     * @param tokens of it, about, and no more
     * @param around tokens that the chat template writes around a message
     * @param tokenize a text on its own, without BOS or EOS
     * @throws KvmergeException.Usage if so few tokens do not hold the facts
     * @throws KvmergeException if the tokenizer cannot tell forty values of a kind apart by their first tokens
     */
    public static FactsChat make(long seed, int count, int tokens, int around, Function<String, int[]> tokenize) {
        return new Maker(new Random(seed), around, tokenize).make(count, tokens);
    }

    /** What is told when. */
    private record Told(FactsWords.Kind kind, String person, String value, List<String> values) {}

    private static final class Maker {
        private final Random random;
        private final int around;
        private final Function<String, int[]> tokenize;
        private final List<ChatMessage> messages = new ArrayList<>();
        private int length; // tokens of the messages, about

        Maker(Random random, int around, Function<String, int[]> tokenize) {
            this.random = random;
            this.around = around;
            this.tokenize = tokenize;
        }

        FactsChat make(int count, int tokens) {
            List<String> openers = distinct("", FactsWords.OPENERS);
            String opener = openers.get(random.nextInt(VALUES));
            List<Told> told = draw().subList(0, count);
            add(ChatMessage.system(FactsWords.SYSTEM + String.format(FactsWords.RULE, opener)));
            List<FactsChat.Fact> facts = new ArrayList<>();
            List<Integer> points = new ArrayList<>();
            for (Told fact : told) {
                // Each fact has its share of the tokens: itself, and talk behind it.
                int end = (int) (length + (tokens - length) / (double) (told.size() - facts.size()));
                facts.add(new FactsChat.Fact(
                        fact.kind.name(),
                        messages.size(),
                        String.format(fact.kind.question(), fact.person),
                        String.format(fact.kind.lead(), fact.person),
                        fact.value,
                        fact.values));
                String lead = choose(FactsWords.LEADS);
                String statement = lead + String.format(fact.kind.statement(), fact.person, fact.value) + ".";
                add(ChatMessage.user(talk() + " " + statement + " " + talk()));
                add(ChatMessage.assistant(
                        String.format(choose(FactsWords.THANKS), facts.getLast().lead() + " " + fact.value)));
                talkUntil(end);
                int done = facts.size();
                if (Arrays.stream(POINTS).anyMatch(p -> Math.ceil(p * told.size()) == done)) {
                    points.add(messages.size());
                }
            }
            if (length > tokens) {
                throw new KvmergeException.Usage("a conversation of " + tokens + " tokens does not hold " + told.size()
                        + " facts, which take " + length + ": give more --tokens");
            }
            return new FactsChat(messages, facts, opener, openers, points);
        }

        /** Turns of plain talk, as many as fit. */
        private void talkUntil(int end) {
            while (true) {
                ChatMessage user = ChatMessage.user(talk() + " " + talk() + " " + talk());
                ChatMessage assistant = ChatMessage.assistant(vary(choose(FactsWords.REPLIES)));
                if (length + size(user) + size(assistant) > end) {
                    return;
                }
                add(user);
                add(assistant);
            }
        }

        private void add(ChatMessage message) {
            messages.add(message);
            length += size(message);
        }

        private int size(ChatMessage message) {
            return tokenize.apply(message.content()).length + around;
        }

        private String talk() {
            return vary(choose(FactsWords.TALK));
        }

        private String choose(List<String> of) {
            return of.get(random.nextInt(of.size()));
        }

        /** Chooses between {a|b}. */
        private String vary(String text) {
            Matcher choice = CHOICE.matcher(text);
            return choice.replaceAll(
                    c -> Matcher.quoteReplacement(choose(List.of(c.group(1).split("\\|", -1)))));
        }

        /** All facts, in an order of their own. */
        private List<Told> draw() {
            List<Told> all = new ArrayList<>();
            for (FactsWords.Kind kind : FactsWords.KINDS) {
                List<String> values = distinct(kind.lead(), kind.values());
                List<String> drawn = new ArrayList<>(values);
                Collections.shuffle(drawn, random);
                for (int i = 0; i < FactsWords.PEOPLE.size(); i++) {
                    all.add(new Told(kind, FactsWords.PEOPLE.get(i), drawn.get(i), values));
                }
            }
            Collections.shuffle(all, random);
            return all;
        }

        /** Forty words whose first tokens differ, where they come after a lead; an empty one is the answer's start. */
        private List<String> distinct(String lead, List<String> words) {
            Set<Integer> firsts = new HashSet<>();
            List<String> found = words.stream()
                    .filter(word -> firsts.add(first(tokenize, lead, word)))
                    .limit(VALUES)
                    .toList();
            if (found.size() < VALUES) {
                throw new KvmergeException("the model's tokenizer tells only " + found.size() + " of " + words.size()
                        + " values apart by their first tokens, and " + VALUES + " are needed: use another model");
            }
            return found;
        }
    }

    /** The first token of a word that comes after a lead. */
    static int first(Function<String, int[]> tokenize, String lead, String word) {
        int[] before = tokenize.apply(lead);
        int[] all = tokenize.apply(lead.isEmpty() ? word : lead + " " + word);
        int at = Arrays.mismatch(before, all);
        if (at < 0 || at >= all.length) {
            throw new KvmergeException(
                    "the model's tokenizer has no token for '" + word + "' after '" + lead + "': use another model");
        }
        return all[at];
    }
}
