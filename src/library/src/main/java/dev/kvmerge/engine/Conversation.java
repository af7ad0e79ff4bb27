package dev.kvmerge.engine;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.llama.Model;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;

/** A session's own conversation, and what of one it has read. Inside the session's calls. */
final class Conversation {
    private final Session session;
    private List<ChatMessage> messages = List.of();

    Conversation(Session session) {
        this.session = session;
    }

    List<ChatMessage> messages() {
        return messages;
    }

    void set(List<ChatMessage> all) {
        messages = List.copyOf(all);
    }

    void forget() {
        messages = List.of();
    }

    /** Starts with a system prompt, and pins it. */
    void begin(Call running, String prompt) {
        List<ChatMessage> first = List.of(ChatMessage.system(prompt));
        int[] prefix = prefix(first);
        session.forget();
        forget();
        Generation read = session.run(running, prefix, prefix.length, GenerateOptions.greedy(0), text -> {});
        if (read.readTokens() < prefix.length) {
            session.forget();
            throw new KvmergeException("reading the system prompt was cancelled: the session is empty, give it again");
        }
        session.pin(running);
        messages = first;
    }

    /** Answers a user's message in the session's own conversation. */
    Generation answer(Call running, String user, GenerateOptions options, Consumer<String> onText) {
        List<ChatMessage> all = with(messages, ChatMessage.user(user));
        Generation answer = answer(running, all, options, onText);
        messages = with(all, ChatMessage.assistant(answer.text()));
        return answer;
    }

    private static List<ChatMessage> with(List<ChatMessage> messages, ChatMessage last) {
        List<ChatMessage> all = new ArrayList<>(messages);
        all.add(last);
        return List.copyOf(all);
    }

    /** Answers the last message of a whole conversation. */
    Generation answer(Call running, List<ChatMessage> all, GenerateOptions options, Consumer<String> onText) {
        ChatTemplate template = session.engine().chatTemplate();
        int[] wanted =
                template.render(List.copyOf(all), true).tokens(session.engine().model());
        if (wanted.length == 0) {
            throw new KvmergeException.Usage("the chat template makes nothing of the conversation");
        }
        return complete(running, wanted, all, options, onText);
    }

    /**
     * Generates after a whole text.
     *
     * @param wanted its tokens
     * @param all the conversation that it is of, empty for none
     */
    Generation complete(
            Call running, int[] wanted, List<ChatMessage> all, GenerateOptions options, Consumer<String> onText) {
        session.check(options);
        History history = session.history();
        Recognition known = session.isBroken()
                ? new Recognition(Recognition.From.START, wanted)
                : Recognition.of(
                        wanted,
                        new Recognition.Known(
                                history.tokens(),
                                history.decoded(),
                                history.generated(),
                                session::settled,
                                session.pinned().state() == null
                                        ? 0
                                        : session.pinned().tokens()),
                        Recognition.Words.of(session.engine().model()));
        int[] fresh = known.fresh();
        int begun = 0; // tokens read here before the others
        switch (known.from()) {
            case HERE -> {}
            case DECODED -> history.cut(history.decoded());
            case SETTLED -> session.takeBack();
            case PINNED -> session.backToPinned();
            case START -> {
                if (history.size() > 0) {
                    session.forget();
                }
                begun = pinSystem(running, all, wanted);
                fresh = Arrays.copyOfRange(wanted, begun, wanted.length);
            }
        }
        session.drawAnew(); // an answer is of its own seed, also where nothing had to be read
        Generation answer = session.run(running, fresh, wanted.length, options, onText);
        return begun == 0 ? answer : withRead(answer, begun);
    }

    private static Generation withRead(Generation g, int more) {
        return new Generation(
                g.text(),
                g.tokens(),
                g.ended(),
                g.stop(),
                g.promptTokens(),
                g.readTokens() + more,
                g.logprobs(),
                g.promptTime(),
                g.generationTime());
    }

    /** Reads the system messages at the start, and pins them; how many tokens that were, 0 if it cannot be. */
    private int pinSystem(Call running, List<ChatMessage> all, int[] wanted) {
        List<ChatMessage> first =
                all.stream().takeWhile(m -> m.role().equals("system")).toList();
        if (first.isEmpty() || first.size() == all.size()) {
            return 0;
        }
        int[] prefix;
        try {
            prefix = prefix(first);
        } catch (KvmergeException e) { // the template wants other messages behind them
            return 0;
        }
        if (prefix.length == 0
                || prefix.length >= wanted.length
                || !Arrays.equals(prefix, Arrays.copyOf(wanted, prefix.length))) {
            return 0;
        }
        int read = session.run(running, prefix, prefix.length, GenerateOptions.greedy(0), text -> {})
                .readTokens();
        if (read == prefix.length) {
            try {
                session.pin(running);
            } catch (KvmergeException.Usage | UnsupportedOperationException e) { // too long to pin: as all other text
                return read;
            }
        }
        return read;
    }

    /** The tokens that every conversation which begins with these messages begins with. */
    private int[] prefix(List<ChatMessage> first) {
        ChatTemplate template = session.engine().chatTemplate();
        Model model = session.engine().model();
        int[] one = template.render(with(first, ChatMessage.user("a")), true).tokens(model);
        int[] other = template.render(with(first, ChatMessage.user("0")), true).tokens(model);
        int common = Arrays.mismatch(one, other);
        return Arrays.copyOf(one, Math.max(0, common - 1)); // the last may be another before other text
    }
}
