package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.bindings.Llama_h;
import dev.kvmerge.bindings.llama_logit_bias;
import dev.kvmerge.bindings.llama_token_data;
import dev.kvmerge.bindings.llama_token_data_array;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Map;
import java.util.function.Supplier;

/**
 * llama.cpp's chain of samplers, which chooses a token from logits. It is made link by link, in the order in which they
 * are to work, and ends with {@link #likeliest} or {@link #draw}; a grammar stands beside the chain, as in llama-cli.
 * One thread at a time; a second one, or a call after {@link #close}, gets an {@link IllegalStateException}. Close it
 * before its model.
 */
public final class Sampler implements AutoCloseable {
    private final Model model;
    private final int vocabulary;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment chain;
    private final MemorySegment candidates; // llama_token_data[vocabulary]
    private final MemorySegment array;
    private final MemorySegment one = arena.allocate(llama_token_data.layout()); // candidate
    private final boolean[] forbidden; // tokens that are never chosen
    private final Guard guard = new Guard("the sampler");
    private MemorySegment grammar = MemorySegment.NULL;
    private MemorySegment draw = MemorySegment.NULL; // of the chain; where the random numbers come from
    private long drawn;

    /** A chain without links, over all tokens but those that the model says are never to be chosen. */
    public Sampler(Model model) {
        this.model = model;
        this.vocabulary = model.vocabularySize();
        try (Guard.Use _ = model.use()) {
            forbidden = new boolean[vocabulary];
            MemorySegment n = arena.allocate(ValueLayout.JAVA_INT);
            MemorySegment suppressed = Llama_h.llama_vocab_get_suppress_tokens(model.words(), n);
            for (int i = 0; i < n.get(ValueLayout.JAVA_INT, 0); i++) {
                forbidden[suppressed.reinterpret(4L * (i + 1)).getAtIndex(ValueLayout.JAVA_INT, i)] = true;
            }
            candidates = llama_token_data.allocateArray(vocabulary, arena);
            array = llama_token_data_array.allocate(arena);
            chain = Llama_h.llama_sampler_chain_init(Llama_h.llama_sampler_chain_default_params(arena));
        } catch (RuntimeException | Error e) {
            arena.close();
            throw e;
        }
    }

    private Sampler add(Supplier<MemorySegment> link) {
        try (Guard.Use _ = guard.exclusive()) {
            addInside(link.get());
        }
        return this;
    }

    private void addInside(MemorySegment link) {
        if (link.equals(MemorySegment.NULL)) {
            throw new KvmergeException(
                    "llama.cpp cannot make a sampler: " + model.library().takeLog());
        }
        Llama_h.llama_sampler_chain_add(chain, link);
    }

    /**
     * Adds to the logits of tokens; negative infinity forbids one.
     *
     * @throws KvmergeException.Usage if a token is outside the vocabulary
     */
    public Sampler bias(Map<Integer, Float> biases) {
        try (Guard.Use _ = guard.exclusive();
                Arena local = Arena.ofConfined()) {
            MemorySegment entries = llama_logit_bias.allocateArray(Math.max(1, biases.size()), local);
            int n = 0;
            for (Map.Entry<Integer, Float> bias : biases.entrySet()) {
                int token = bias.getKey();
                if (token < 0 || token >= vocabulary) {
                    throw new KvmergeException.Usage(
                            "logit bias: the model has no token " + token + ", its vocabulary" + " has " + vocabulary);
                }
                if (bias.getValue() == Float.NEGATIVE_INFINITY) {
                    forbidden[token] = true;
                } else {
                    MemorySegment entry = llama_logit_bias.asSlice(entries, n++);
                    llama_logit_bias.token(entry, token);
                    llama_logit_bias.bias(entry, bias.getValue());
                }
            }
            if (n > 0) {
                addInside(Llama_h.llama_sampler_init_logit_bias(vocabulary, n, entries));
            }
        }
        return this;
    }

    /** Never chooses a token that ends the generation. */
    public Sampler withoutEnd() {
        try (Guard.Use _ = guard.exclusive()) {
            for (int token = 0; token < vocabulary; token++) {
                forbidden[token] |= model.endsGeneration(token);
            }
        }
        return this;
    }

    /** llama_sampler_init_penalties, over the newest n tokens that were accepted. */
    public Sampler penalties(int n, float repeat, float frequency, float presence) {
        if (n > 0 && (repeat != 1 || frequency != 0 || presence != 0)) {
            return add(() -> Llama_h.llama_sampler_init_penalties(vocabulary, n, repeat, frequency, presence));
        }
        return this;
    }

    /** llama_sampler_init_top_k; 0 for all. */
    public Sampler topK(int k) {
        return add(() -> Llama_h.llama_sampler_init_top_k(k));
    }

    /** llama_sampler_init_typical. */
    public Sampler typical(float p) {
        return add(() -> Llama_h.llama_sampler_init_typical(p, 0));
    }

    /** llama_sampler_init_top_p. */
    public Sampler topP(float p) {
        return add(() -> Llama_h.llama_sampler_init_top_p(p, 0));
    }

    /** llama_sampler_init_min_p. */
    public Sampler minP(float p) {
        return add(() -> Llama_h.llama_sampler_init_min_p(p, 0));
    }

    /** llama_sampler_init_temp. */
    public Sampler temperature(float t) {
        return add(() -> Llama_h.llama_sampler_init_temp(t));
    }

    /** The last link: the likeliest of what is left. */
    public Sampler likeliest() {
        return add(() -> Llama_h.llama_sampler_init_greedy());
    }

    /**
     * The last link: draws from what is left.
     *
     * @param seed of the random numbers
     * @param skip how many draws of this seed were made before
     */
    public Sampler draw(int seed, long skip) {
        try (Guard.Use _ = guard.exclusive()) {
            draw = Llama_h.llama_sampler_init_dist(seed);
            addInside(draw);
            for (long i = 0; i < skip; i++) { // a choice among one draws too
                llama_token_data_array.data(array, one);
                llama_token_data_array.size(array, 1);
                Llama_h.llama_sampler_apply(draw, array);
            }
            drawn = skip;
        }
        return this;
    }

    /**
     * Lets through only what a grammar allows.
     *
     * @param gbnf as llama.cpp's grammars/README.md describes it; its symbol "root" is the whole text
     * @throws KvmergeException.Usage if it is none
     */
    public Sampler grammar(String gbnf) {
        GrammarCheck.check(gbnf);
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = model.use();
                Arena local = Arena.ofConfined()) {
            model.library().takeLog();
            MemorySegment made = Llama_h.llama_sampler_init_grammar(
                    model.words(), local.allocateFrom(gbnf), local.allocateFrom("root"));
            if (made.equals(MemorySegment.NULL)) {
                throw new KvmergeException.Usage("the grammar (--grammar) is no GBNF with a symbol \"root\": "
                        + model.library().takeLog() + "; llama.cpp says more on standard error");
            }
            if (!grammar.equals(MemorySegment.NULL)) {
                Llama_h.llama_sampler_free(grammar);
            }
            grammar = made;
        }
        return this;
    }

    /**
     * Chooses a token.
     *
     * @param logits F32 [vocabulary]
     * @throws KvmergeException if a logit is NaN, or nothing is left to choose from
     */
    public int sample(MemorySegment logits) {
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = model.use()) {
            fill(logits);
            int chosen = choose();
            if (grammar.equals(MemorySegment.NULL) || allows(chosen)) {
                return chosen;
            }
            fill(logits); // what the grammar forbids was chosen: choose among what it allows
            Llama_h.llama_sampler_apply(grammar, array);
            keepPossible();
            return choose();
        }
    }

    private void fill(MemorySegment logits) {
        int n = 0;
        for (int token = 0; token < vocabulary; token++) {
            float logit = logits.getAtIndex(ValueLayout.JAVA_FLOAT, token);
            if (Float.isNaN(logit)) {
                throw new KvmergeException("the logit of token " + token + " is not a number: the model " + model.path()
                        + " is broken, or its computation overflows (try other cell types, -ctk and -ctv)");
            }
            if (!forbidden[token]) {
                long at = llama_token_data.sizeof() * n++;
                candidates.set(ValueLayout.JAVA_INT, at, token);
                candidates.set(ValueLayout.JAVA_FLOAT, at + 4, logit);
                candidates.set(ValueLayout.JAVA_FLOAT, at + 8, 0);
            }
        }
        present(candidates, n);
    }

    private void present(MemorySegment data, long n) {
        llama_token_data_array.data(array, data);
        llama_token_data_array.size(array, n);
        llama_token_data_array.selected(array, -1);
        llama_token_data_array.sorted(array, false);
    }

    /** Leaves out what has no chance: some of llama.cpp's samplers make NaN of it. */
    private void keepPossible() {
        long size = llama_token_data.sizeof();
        long n = 0;
        for (long i = 0; i < llama_token_data_array.size(array); i++) {
            if (candidates.get(ValueLayout.JAVA_FLOAT, i * size + 4) != Float.NEGATIVE_INFINITY) {
                MemorySegment.copy(candidates, i * size, candidates, n++ * size, size);
            }
        }
        present(candidates, n);
    }

    private int choose() {
        if (llama_token_data_array.size(array) == 0) {
            throw new KvmergeException(
                    "no token can follow: the grammar (--grammar) and the biases (--logit-bias)" + " forbid every one");
        }
        Llama_h.llama_sampler_apply(chain, array);
        if (!draw.equals(MemorySegment.NULL)) {
            drawn++;
        }
        long selected = llama_token_data_array.selected(array);
        long n = llama_token_data_array.size(array);
        if (selected < 0 || selected >= n) {
            throw new KvmergeException("llama.cpp's samplers chose none of " + n + " tokens");
        }
        MemorySegment data = llama_token_data_array.data(array).reinterpret(llama_token_data.sizeof() * n);
        return data.get(ValueLayout.JAVA_INT, llama_token_data.sizeof() * selected);
    }

    private boolean allows(int token) {
        one.set(ValueLayout.JAVA_INT, 0, token);
        one.set(ValueLayout.JAVA_FLOAT, 4, 1);
        present(one, 1);
        Llama_h.llama_sampler_apply(grammar, array);
        return one.get(ValueLayout.JAVA_FLOAT, 4) != Float.NEGATIVE_INFINITY;
    }

    /** Takes account of a token that was chosen. */
    public void accept(int token) {
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = model.use()) {
            if (!grammar.equals(MemorySegment.NULL)) {
                if (!allows(model.checkToken(token))) { // llama.cpp would end the process
                    throw new IllegalArgumentException("the grammar does not allow token " + token + " here");
                }
                Llama_h.llama_sampler_accept(grammar, token);
            }
            Llama_h.llama_sampler_accept(chain, token);
        }
    }

    /** Takes account of a token that was read: the penalties look at it, the grammar does not. */
    public void acceptPrompt(int token) {
        try (Guard.Use _ = guard.exclusive();
                Guard.Use _ = model.use()) {
            Llama_h.llama_sampler_accept(chain, model.checkToken(token));
        }
    }

    /** Draws made of the seed so far, those that were skipped among them. */
    public long drawn() {
        return drawn;
    }

    @Override
    public void close() {
        guard.close(() -> {
            Llama_h.llama_sampler_free(chain);
            if (!grammar.equals(MemorySegment.NULL)) {
                Llama_h.llama_sampler_free(grammar);
            }
            arena.close();
        });
    }
}
