package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.ChatMessage;
import java.net.URI;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.ToDoubleFunction;

/**
 * Times servers with OpenAI's protocol beside each other: the same requests to each in turns, one and several at once.
 * A request is a conversation whose first message is long; a second message goes on where the first answer ended.
 */
public final class ServerBench implements AutoCloseable {
    private static final Duration PATIENCE = Duration.ofMinutes(30);
    private static final double NANOS = 1e9;

    /** A server that is up. */
    public record Server(String name, URI base) {}

    /**
     * What to send.
     *
     * @param characters of a first message; each begins at another place of the text
     * @param tokens of an answer
     * @param atOnce numbers of requests side by side
     * @param turns that count; one before them does not
     */
    public record Setup(String text, int characters, int tokens, int[] atOnce, int turns) {}

    /**
     * Medians over turns of one server, for one kind of request.
     *
     * @param message "first" of a conversation, or "second"
     * @param prompt tokens of the conversation, as the server counts them
     * @param first seconds to the first token, the median of those at once
     * @param each tokens a second of an answer after its first, likewise
     * @param all tokens a second of all answers together, the wait for their first tokens included
     * @param firstRatio times the first server's, turn by turn; of it, 1
     */
    public record Row(
            String message,
            int atOnce,
            String server,
            int prompt,
            double first,
            double each,
            double all,
            double firstRatio,
            double eachRatio,
            double allRatio) {}

    private record Sample(int prompt, double first, double each, double all) {}

    private final List<Server> servers;
    private final Setup setup;
    private final List<ChatClient> clients = new ArrayList<>();
    private int asked; // conversations so far: no two begin alike

    public ServerBench(List<Server> servers, Setup setup) {
        this.servers = List.copyOf(servers);
        this.setup = setup;
        servers.forEach(server -> clients.add(new ChatClient(server.base(), PATIENCE)));
    }

    /**
     * Sends all requests.
     *
     * @throws KvmergeException if a server does not answer as it should
     * @throws Experiment.Cancelled if asked to stop
     */
    public List<Row> run(Consumer<String> progress, BooleanSupplier cancelled) {
        List<Row> rows = new ArrayList<>();
        for (int n : setup.atOnce()) {
            // [message][server]: a sample a turn
            List<List<List<Sample>>> samples = List.of(perServer(), perServer());
            for (int turn = 0; turn <= setup.turns(); turn++) {
                List<List<ChatMessage>> conversations = conversations(n);
                for (int i = 0; i < servers.size(); i++) {
                    int s = (i + turn) % servers.size(); // each comes first as often
                    if (cancelled.getAsBoolean()) {
                        throw new Experiment.Cancelled();
                    }
                    progress.accept(n + " at once, " + (turn == 0 ? "warming up" : "turn " + turn) + ", "
                            + servers.get(s).name());
                    List<Sample> both = ask(clients.get(s), conversations);
                    for (int m = 0; turn > 0 && m < both.size(); m++) {
                        samples.get(m).get(s).add(both.get(m));
                    }
                }
            }
            for (int m = 0; m < samples.size(); m++) {
                for (int s = 0; s < servers.size(); s++) {
                    rows.add(row(m == 0 ? "first" : "second", n, servers.get(s).name(), samples.get(m), s));
                }
            }
        }
        return rows;
    }

    private List<List<Sample>> perServer() {
        return servers.stream().map(s -> (List<Sample>) new ArrayList<Sample>()).toList();
    }

    private List<List<ChatMessage>> conversations(int n) {
        List<List<ChatMessage>> all = new ArrayList<>();
        for (int i = 0; i < n; i++) {
            int room = setup.text().length() - setup.characters();
            int from = (int) (asked * 7919L % Math.max(1, room));
            String part = setup.text()
                    .substring(
                            from,
                            from + Math.min(setup.characters(), setup.text().length()));
            all.add(List.of(ChatMessage.user("Text " + asked + ": " + part + "\n\nWhat is this text about?")));
            asked++;
        }
        return all;
    }

    /** Sends all conversations at once, and then all second messages. */
    private List<Sample> ask(ChatClient client, List<List<ChatMessage>> conversations) {
        List<ChatClient.Answer> first = answers(client, conversations);
        List<List<ChatMessage>> on = new ArrayList<>();
        for (int i = 0; i < conversations.size(); i++) {
            List<ChatMessage> longer = new ArrayList<>(conversations.get(i));
            longer.add(ChatMessage.assistant(first.get(i).text()));
            longer.add(ChatMessage.user("Who is in it, and where does it take place?"));
            on.add(longer);
        }
        return List.of(sample(first), sample(answers(client, on)));
    }

    private List<ChatClient.Answer> answers(ChatClient client, List<List<ChatMessage>> conversations) {
        try (ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
            List<Future<ChatClient.Answer>> coming = conversations.stream()
                    .map(c -> threads.submit(() -> client.ask(c, setup.tokens())))
                    .toList();
            List<ChatClient.Answer> all = new ArrayList<>();
            for (Future<ChatClient.Answer> answer : coming) {
                all.add(answer.get());
            }
            return all;
        } catch (ExecutionException e) {
            throw e.getCause() instanceof RuntimeException cause ? cause : new IllegalStateException(e.getCause());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new Experiment.Cancelled();
        }
    }

    private Sample sample(List<ChatClient.Answer> answers) {
        long start = answers.stream().mapToLong(ChatClient.Answer::start).min().orElseThrow();
        long last = answers.stream().mapToLong(ChatClient.Answer::last).max().orElseThrow();
        for (ChatClient.Answer answer : answers) {
            if (answer.tokens() != setup.tokens()) {
                throw new KvmergeException("a server answered in " + answer.tokens() + " tokens where "
                        + setup.tokens() + " were asked for, so that speeds cannot be compared: give its context room"
                        + " for the conversation and the answer");
            }
        }
        return new Sample(
                (int) median(answers, ChatClient.Answer::prompt),
                median(answers, a -> (a.first() - a.start()) / NANOS),
                median(answers, a -> (a.tokens() - 1) * NANOS / Math.max(1, a.last() - a.first())),
                answers.size() * setup.tokens() * NANOS / (last - start));
    }

    private static Row row(String message, int n, String name, List<List<Sample>> samples, int server) {
        List<Sample> mine = samples.get(server);
        List<Sample> base = samples.getFirst();
        return new Row(
                message,
                n,
                name,
                (int) median(mine, Sample::prompt),
                median(mine, Sample::first),
                median(mine, Sample::each),
                median(mine, Sample::all),
                ratio(mine, base, Sample::first),
                ratio(mine, base, Sample::each),
                ratio(mine, base, Sample::all));
    }

    private static double ratio(List<Sample> mine, List<Sample> base, ToDoubleFunction<Sample> what) {
        double[] ratios = new double[mine.size()];
        for (int i = 0; i < ratios.length; i++) {
            ratios[i] = what.applyAsDouble(mine.get(i)) / what.applyAsDouble(base.get(i));
        }
        return median(ratios);
    }

    private static <T> double median(List<T> of, ToDoubleFunction<T> what) {
        return median(of.stream().mapToDouble(what).toArray());
    }

    private static double median(double[] x) {
        Arrays.sort(x);
        return (x[(x.length - 1) / 2] + x[x.length / 2]) / 2;
    }

    /** Whether a server answers requests. */
    public static boolean isReady(URI base) {
        try (ChatClient client = new ChatClient(base, PATIENCE)) {
            return client.isReady();
        }
    }

    @Override
    public void close() {
        clients.forEach(ChatClient::close);
    }
}
