// A cache in the real llama.cpp: it stays within its cells, what is pinned stays, and a state that is saved goes on by
// the bit.
#include "isa.hpp"
#include "real_llama.hpp"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace {

constexpr int CELLS = 40, BLOCK = 16, THERE = 256, PAIRS = TinyGguf::LAYERS * TinyGguf::KV_HEADS;

struct Case {
    const char * name;
    bool flash;
    ggml_type type;
    int bias, observe, position_range;
    bool calibrated;
    int prompt_block = 0;
};

bool frees = true, decodes = true, decodes_first = false; // what the entry points below answer
kvmerge_observer * to_free = nullptr;                     // tried while a cache is at work
bool seq_rm(llama_memory_i * memory, int32_t seq_id, int32_t from, int32_t to) {
    CHECK(!to_free || kvmerge_observer_free(to_free) == KVMERGE_E_STATE);
    return frees && llama.llama_memory_seq_rm(memory, seq_id, from, to);
}
int32_t decode(llama_context * context, llama_batch batch) {
    const int32_t status = decodes || decodes_first ? llama.llama_decode(context, batch) : 0;
    return decodes ? status : 2;
}

void refused(kvmerge_status status, kvmerge_status expected, const char * why) {
    if (status != expected || !std::strstr(kvmerge_last_error(), why)) {
        std::printf("status %d, '%s' where '%s' was expected\n", status, kvmerge_last_error(), why);
        std::exit(1);
    }
}

// A context with an observer and a cache of it.
struct Run {
    kvmerge_observer *observer = nullptr, *streams[3] = {};
    llama_context * context = nullptr;
    kvmerge_cache * cache = nullptr;

    // A sequence alone, or the second of three in streams of their own.
    Run(llama_model * model, const Case & c, const std::function<void(kvmerge_cache_params &)> & change = {},
        bool of_three = false) {
        kvmerge_observer_params p = {};
        p.n_layer = TinyGguf::LAYERS;
        p.n_head = TinyGguf::HEADS;
        p.n_head_kv = TinyGguf::KV_HEADS;
        p.n_cells = THERE;
        p.n_tokens = std::max(BLOCK, c.prompt_block);
        p.observe = KVMERGE_OBSERVE_MASS | c.observe;
        p.bias = c.bias;
        p.mass_power = c.calibrated ? 1 : 1.5f;
        p.query_decay = .7f;
        p.ridge = .05f;
        p.n_threads = 2;
        p.ggml = ggml_entries();
        if (of_three) {
            ok(kvmerge_observer_create_group(&p, 3, &observer, streams));
        } else {
            ok(kvmerge_observer_create(&p, &observer));
            streams[0] = observer;
        }
        llama_context_params cp = llama.llama_context_default_params();
        cp.n_ctx = of_three ? 3 * THERE : THERE;
        cp.n_seq_max = of_three ? 3 : 1;
        cp.kv_unified = false;
        cp.n_batch = cp.n_ubatch = uint32_t(p.n_tokens);
        cp.n_threads = cp.n_threads_batch = 1; // more would spin while they wait, on a machine that is busy
        cp.flash_attn_type = c.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        cp.type_k = cp.type_v = c.type;
        cp.cb_eval = kvmerge_eval_callback;
        cp.cb_eval_user_data = observer;
        context = llama.llama_init_from_model(model, cp);
        CHECK(context);
        kvmerge_cache_params q;
        ok(kvmerge_cache_defaults(&q));
        q.n_cells = CELLS;
        q.n_block = BLOCK;
        q.n_prompt_block = c.prompt_block;
        q.position_range = c.position_range;
        q.record_fates = 1;
        q.llama = cache_entries(); // but for two that can fail
        q.llama.decode = reinterpret_cast<void (*)()>(decode);
        q.llama.memory_seq_rm = seq_rm;
        std::vector<float> calibration;
        if (c.calibrated) {
            calibration = Random(5).normals(size_t(PAIRS) * (6 + TinyGguf::HEAD_SIZE));
            for (float & w : calibration) {
                w *= .3f;
            }
            q.calibration = calibration.data();
            q.calibration_dim = TinyGguf::HEAD_SIZE;
            q.key_cost = .8;
        }
        if (change) {
            change(q);
        }
        if (of_three) {
            refused(kvmerge_cache_create(&q, observer, context, 1, &cache), KVMERGE_E_ARGUMENT, "is a group's");
        }
        ok(kvmerge_cache_create(&q, streams[of_three], context, of_three, &cache));
    }
    Run(const Run &) = delete;
    ~Run() {
        kvmerge_cache_free(cache);
        llama.llama_free(context);
        kvmerge_observer_free(observer);
    }

    std::vector<float> read(const llama_token * tokens, int n) {
        const float * logits = nullptr;
        ok(kvmerge_cache_decode(cache, tokens, n, &logits));
        CHECK(logits);
        return std::vector<float>(logits, logits + TinyGguf::VOCABULARY);
    }
    kvmerge_cache_used usage() const {
        kvmerge_cache_used used;
        ok(kvmerge_cache_usage(cache, &used));
        return used;
    }
    std::vector<char> state() const {
        size_t size;
        ok(kvmerge_cache_state_size(cache, &size));
        std::vector<char> bytes(size);
        ok(kvmerge_cache_save(cache, bytes.data(), size));
        return bytes;
    }
    std::vector<int32_t> fates(int pair) const {
        std::vector<int32_t> all(size_t(usage().n_tokens));
        ok(kvmerge_cache_fates(cache, pair / TinyGguf::KV_HEADS, pair % TinyGguf::KV_HEADS, 0, int32_t(all.size()),
                               all.data()));
        return all;
    }
    kvmerge_cache_column columns(int pair) const {
        kvmerge_cache_column column;
        ok(kvmerge_cache_columns(cache, pair / TinyGguf::KV_HEADS, pair % TinyGguf::KV_HEADS, &column));
        return column;
    }
};

std::vector<llama_token> tokens_of(unsigned seed, int n) {
    Random random(seed);
    std::vector<llama_token> tokens;
    for (int i = 0; i < n; i++) {
        tokens.push_back(random.integer(0, TinyGguf::VOCABULARY - 1));
    }
    return tokens;
}

// Text of any length, in any pieces: the cells stay within the budget, and every token has a fate.
void stays_within_its_cells(llama_model * model, const Case & c) {
    Run run(model, c);
    Random random(3);
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    for (int at = 0; at < 300;) {
        const int n = std::min(300 - at, random.integer(1, 2 * BLOCK + 3));
        run.read(tokens.data() + at, n);
        at += n;
        const kvmerge_cache_used used = run.usage();
        CHECK(used.n_tokens == at && used.n_used <= CELLS + BLOCK - 1 && !used.over && !used.broken);
        CHECK(run.fates(1).back() == at - 1); // also in the midst of a block
        CHECK(c.position_range > 0 ? used.position <= c.position_range + std::max(BLOCK, c.prompt_block)
                                   : used.position == at);
    }
    ok(kvmerge_cache_flush(run.cache));
    int merged = 0;
    for (int pair = 0; pair < PAIRS; pair++) {
        const kvmerge_cache_column cells = run.columns(pair);
        const std::vector<int32_t> fates = run.fates(pair);
        std::vector<int> count(fates.size(), 0);
        for (const int32_t fate : fates) {
            if (fate >= 0) {
                count[size_t(fate)]++;
            }
        }
        int kept = 0;
        for (int i = 0; i < cells.n; i++) {
            CHECK(fates[size_t(cells.position[i])] == cells.position[i]);
            CHECK(count[size_t(cells.position[i])] == cells.count[i]);
            kept += cells.count[i];
            merged += cells.count[i] > 1;
        }
        CHECK(kept <= 300 && cells.position[cells.n - 1] == 299);
    }
    CHECK(merged > 0);
}

// Saved at several points of a block, restored in a new context, in one that has read something else, and in itself.
void goes_on_from_a_state(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 400);
    for (const int at : {1, BLOCK - 1, BLOCK, 57, CELLS + BLOCK, 100, 8 * BLOCK + 3}) {
        Run saved(model, c), fresh(model, c), other(model, c);
        saved.read(tokens.data(), at);
        other.read(tokens.data() + 200, 77);
        const std::vector<char> state = saved.state();
        CHECK(state == saved.state());
        ok(kvmerge_cache_restore(fresh.cache, state.data(), state.size()));
        ok(kvmerge_cache_restore(other.cache, state.data(), state.size()));
        CHECK(fresh.usage().n_used == saved.usage().n_used && fresh.usage().n_tokens == at);
        CHECK(state == fresh.state() && state == other.state());
        std::vector<std::vector<float>> expected;
        for (int i = 0; i < 3 * BLOCK; i++) {
            expected.push_back(saved.read(tokens.data() + at + i, 1));
            CHECK(expected.back() == fresh.read(tokens.data() + at + i, 1));
            CHECK(expected.back() == other.read(tokens.data() + at + i, 1));
        }
        CHECK(saved.state() == fresh.state());
        ok(kvmerge_cache_restore(saved.cache, state.data(), state.size()));
        for (int i = 0; i < 3 * BLOCK; i++) {
            CHECK(expected[size_t(i)] == saved.read(tokens.data() + at + i, 1));
        }
    }
}

// Prompts are read in larger blocks than generations: as by a cache whose blocks are all as large, and what was pending
// is compressed before. Whoever calls with a block at most has no prompt.
void reads_prompts_in_their_own_blocks(llama_model * model, Case c) {
    constexpr int PROMPT = 3 * BLOCK;
    const std::vector<llama_token> tokens = tokens_of(1, 400);
    Case plain = c;
    plain.prompt_block = 0;
    c.prompt_block = PROMPT;
    Run run(model, c), large(model, c, [](auto & p) { p.n_block = PROMPT; });
    CHECK(run.read(tokens.data(), 2 * PROMPT) == large.read(tokens.data(), 2 * PROMPT));
    CHECK(run.usage().n_used == CELLS && run.state() == large.state());
    CHECK(run.read(tokens.data() + 96, PROMPT + 5) == large.read(tokens.data() + 96, PROMPT + 5));
    CHECK(run.usage().n_used == CELLS + 5 && run.state() == large.state()); // what is left is no prompt
    run.read(tokens.data() + 149, BLOCK + 1);
    CHECK(run.usage().n_used == CELLS);
    ok(kvmerge_cache_flush(large.cache)); // what was pending
    large.read(tokens.data() + 149, BLOCK + 1);
    ok(kvmerge_cache_flush(large.cache));
    CHECK(run.state() == large.state());
    Run small(model, plain), same(model, c);
    for (int at = 0; at < 200; at += 10) {
        CHECK(small.read(tokens.data() + at, 10) == same.read(tokens.data() + at, 10));
    }
    CHECK(small.state() == same.state());
    Run less(model, plain, [](auto & p) { p.n_prompt_block = BLOCK - 1; }); // counts as a block
    CHECK(less.read(tokens.data(), 200) == Run(model, plain).read(tokens.data(), 200));
}

void refuses_what_is_no_state(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 200);
    Run saved(model, c), run(model, c), never(model, c);
    size_t size;
    refused(kvmerge_cache_state_size(saved.cache, &size), KVMERGE_E_STATE, "decode something first");
    saved.read(tokens.data(), 100);
    const std::vector<char> state = saved.state();
    run.read(tokens.data(), 70);
    never.read(tokens.data(), 70);
    for (const size_t n : {size_t(0), size_t(7), size_t(100), state.size() / 2, state.size() - 1}) {
        refused(kvmerge_cache_restore(run.cache, state.data(), n), KVMERGE_E_ARGUMENT, n < 300 ? "bytes" : "cut short");
    }
    Random random(9);
    for (int i = 0; i < 200; i++) {
        std::vector<char> damaged = state;
        damaged[size_t(random.integer(0, int(state.size()) - 1))] ^= char(1 << random.integer(0, 7));
        if (damaged != state) {
            const kvmerge_status status = kvmerge_cache_restore(run.cache, damaged.data(), damaged.size());
            CHECK(status == KVMERGE_E_ARGUMENT || damaged[12] != state[12] || damaged[13] != state[13] ||
                  damaged[14] != state[14] || damaged[15] != state[15]);
        }
    }
    Case f32 = c;
    f32.type = GGML_TYPE_F32;
    Run type(model, f32), range(model, c, [](auto & p) { p.position_range = 64; }),
        cells(model, c, [](auto & p) { p.n_cells = 41; }), decay(model, c, [](auto & p) { p.mass_decay = .8; }),
        fates(model, c, [](auto & p) { p.record_fates = 0; });
    refused(kvmerge_cache_restore(type.cache, state.data(), state.size()), KVMERGE_E_ARGUMENT, "cells of type f16");
    refused(kvmerge_cache_restore(range.cache, state.data(), state.size()), KVMERGE_E_ARGUMENT,
            "a position range of 0");
    refused(kvmerge_cache_restore(cells.cache, state.data(), state.size()), KVMERGE_E_ARGUMENT, "cells that stay: 40");
    refused(kvmerge_cache_restore(decay.cache, state.data(), state.size()), KVMERGE_E_ARGUMENT, "a mass decay of 0.9");
    refused(kvmerge_cache_restore(fates.cache, state.data(), state.size()), KVMERGE_E_ARGUMENT, "a record of fates: 1");
    Run plain(model, f32); // the token by which a context became known has left no trace
    CHECK(plain.read(tokens.data(), 90) == type.read(tokens.data(), 90));
    for (int i = 70; i < 140; i++) { // as if nothing had been
        CHECK(run.read(tokens.data() + i, 1) == never.read(tokens.data() + i, 1));
    }
    ok(kvmerge_cache_clear(run.cache));
    CHECK(run.usage().n_tokens == 0 && run.usage().n_used == 0);
    Run fresh(model, c);
    CHECK(run.read(tokens.data(), 123) == fresh.read(tokens.data(), 123));
}

void keeps_what_is_pinned(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    Run run(model, c);
    run.read(tokens.data(), 21);
    refused(kvmerge_cache_pin(run.cache, 20), KVMERGE_E_ARGUMENT, "they would leave 19 of 40, fewer than the 20");
    ok(kvmerge_cache_pin(run.cache, 19));
    for (int at = 21; at < 300; at += 9) {
        run.read(tokens.data() + at, 9);
    }
    ok(kvmerge_cache_flush(run.cache));
    CHECK(run.usage().n_pinned == 21);
    for (int pair = 0; pair < PAIRS; pair++) {
        const kvmerge_cache_column cells = run.columns(pair);
        const std::vector<int32_t> fates = run.fates(pair);
        CHECK(cells.n_pinned == 21);
        for (int i = 0; i < 21; i++) {
            CHECK(fates[size_t(i)] == i && cells.position[i] == i && cells.frame[i] == i && cells.count[i] == 1);
            CHECK(cells.exposure[i] > 50); // statistics go on
        }
        for (const int32_t fate : std::vector<int32_t>(fates.begin() + 21, fates.end())) {
            CHECK(fate == -1 || fate >= 21); // nothing is merged into it
        }
    }
    ok(kvmerge_cache_clear(run.cache));
    CHECK(run.usage().n_pinned == 0);
}

void is_broken_by_halves_only(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    Run run(model, c), never(model, c);
    run.read(tokens.data(), 50);
    never.read(tokens.data(), 50);
    decodes = false;
    refused(kvmerge_cache_decode(run.cache, tokens.data() + 50, 1, nullptr), KVMERGE_E_STATE, "llama_decode failed");
    decodes = true;
    const llama_token none = TinyGguf::VOCABULARY;
    refused(kvmerge_cache_decode(run.cache, &none, 1, nullptr), KVMERGE_E_STATE, "llama_decode failed");
    CHECK(!run.usage().broken && run.read(tokens.data() + 50, 1) == never.read(tokens.data() + 50, 1));
    frees = false;
    refused(kvmerge_cache_decode(run.cache, tokens.data() + 51, 30, nullptr), KVMERGE_E_STATE, "cannot free the pos");
    frees = true;
    CHECK(run.usage().broken);
    kvmerge_cache_column column;
    refused(kvmerge_cache_columns(run.cache, 0, 0, &column), KVMERGE_E_STATE, "the cache is broken");
    refused(kvmerge_cache_decode(run.cache, tokens.data(), 1, nullptr), KVMERGE_E_STATE, "cannot free the positions");
    const std::vector<char> state = never.state();
    ok(kvmerge_cache_restore(run.cache, state.data(), state.size()));
    CHECK(!run.usage().broken && run.read(tokens.data() + 51, 60) == never.read(tokens.data() + 51, 60));
}

// Where the observer has seen some of what failed, the block cannot be taken any more.
void is_broken_in_the_midst_of_a_block(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    Run run(model, c), never(model, c);
    run.read(tokens.data(), 48);
    never.read(tokens.data(), 48);
    const std::vector<char> state = never.state();
    decodes = false, decodes_first = true;
    refused(kvmerge_cache_decode(run.cache, tokens.data() + 48, 1, nullptr), KVMERGE_E_STATE, "llama_decode failed");
    CHECK(!run.usage().broken); // at the start of a block it is forgotten
    decodes = true;
    run.read(tokens.data() + 48, 3);
    never.read(tokens.data() + 48, 3);
    decodes = false;
    refused(kvmerge_cache_decode(run.cache, tokens.data() + 51, 2, nullptr), KVMERGE_E_STATE, "llama_decode failed");
    decodes = true, decodes_first = false;
    CHECK(run.usage().broken);
    refused(kvmerge_cache_decode(run.cache, tokens.data() + 51, 2, nullptr), KVMERGE_E_STATE, "the cache is broken");
    ok(kvmerge_cache_restore(run.cache, state.data(), state.size()));
    run.read(tokens.data() + 48, 3);
    CHECK(run.read(tokens.data() + 51, 90) == never.read(tokens.data() + 51, 90));
}

void keeps_its_observer(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    for (const bool of_three : {false, true}) {
        Run run(model, c, {}, of_three);
        to_free = run.observer; // with three streams, the group's
        run.read(tokens.data(), 200);
        to_free = nullptr;
        CHECK(run.usage().n_tokens == 200);
        ok(kvmerge_observer_begin(of_three ? run.streams[1] : run.observer));
    }
    Run run(model, c);
    kvmerge_cache_used used;
    refused(kvmerge_observer_begin(reinterpret_cast<kvmerge_observer *>(run.cache)), KVMERGE_E_ARGUMENT, "no observer");
    refused(kvmerge_cache_usage(reinterpret_cast<kvmerge_cache *>(run.observer), &used), KVMERGE_E_ARGUMENT,
            "no cache");
    refused(kvmerge_cache_decode(run.cache, tokens.data(), INT32_MAX, nullptr), KVMERGE_E_ARGUMENT, "can be counted");
}

// What does not go together is refused when the cache is made, or before anything is decoded.
void refuses_what_does_not_go_together(llama_model * model, const Case & c) {
    kvmerge_observer_params p = {};
    p.n_layer = TinyGguf::LAYERS;
    p.n_head = TinyGguf::HEADS;
    p.n_head_kv = TinyGguf::KV_HEADS;
    p.n_cells = INT32_MAX; // whose table no memory holds
    p.n_tokens = BLOCK;
    p.observe = KVMERGE_OBSERVE_MASS;
    p.mass_power = 1;
    p.n_threads = 1;
    p.ggml = ggml_entries();
    kvmerge_observer * observer = nullptr;
    kvmerge_cache * cache = nullptr;
    kvmerge_cache_params q = {};
    Run run(model, c, [&](kvmerge_cache_params & params) { q = params; });
    for (const int32_t cells : {INT32_MAX, THERE + 256}) {
        p.n_cells = cells;
        ok(kvmerge_observer_create(&p, &observer));
        refused(kvmerge_cache_create(&q, observer, run.context, 0, &cache), KVMERGE_E_ARGUMENT, "llama_n_ctx_seq");
        ok(kvmerge_observer_free(observer));
    }
    p.n_cells = THERE;
    p.n_tokens = THERE;
    ok(kvmerge_observer_create(&p, &observer));
    for (const int32_t block : {-1, THERE - CELLS + 1, THERE + 1, INT32_MAX}) {
        kvmerge_cache_params prompts = q;
        prompts.n_prompt_block = block;
        refused(kvmerge_cache_create(&prompts, observer, run.context, 0, &cache), KVMERGE_E_ARGUMENT, "n_prompt_block");
    }
    ok(kvmerge_observer_free(observer));
    p.n_tokens = BLOCK;
    p.observe = KVMERGE_OBSERVE_CELLS; // plans would go by zeros
    ok(kvmerge_observer_create(&p, &observer));
    ok(kvmerge_cache_create(&q, observer, run.context, 0, &cache));
    const std::vector<llama_token> tokens = tokens_of(1, 8);
    refused(kvmerge_cache_decode(cache, tokens.data(), 8, nullptr), KVMERGE_E_ARGUMENT, "KVMERGE_OBSERVE_MASS");
    kvmerge_cache_used used;
    ok(kvmerge_cache_usage(cache, &used));
    CHECK(used.n_tokens == 0);
    ok(kvmerge_cache_free(cache));
    ok(kvmerge_observer_free(observer));
}

// A saved state, some of whose numbers are others.
class Forged {
  public:
    static constexpr size_t SUMMED = 32, USED = 136, PINNED = 140, TOKENS = 144, POSITION = 148, LLAMA = 152;

    Forged(const std::vector<char> & state, bool fates) : bytes(state) {
        size_t llama_bytes;
        std::memcpy(&llama_bytes, bytes.data() + LLAMA, sizeof llama_bytes);
        used = int32(USED), n_tokens = int32(TOKENS);
        llama_state = bytes.size() - llama_bytes;
        columns = llama_state - size_t(PAIRS) * 8 * 4 * size_t(used);
        held = columns - (fates ? size_t(PAIRS) * 4 * size_t(n_tokens) : 0) - 4 * size_t(used);
    }
    int32_t int32(size_t at) const {
        int32_t value;
        std::memcpy(&value, bytes.data() + at, sizeof value);
        return value;
    }
    Forged & put(size_t at, int32_t value) {
        std::memcpy(bytes.data() + at, &value, sizeof value);
        return *this;
    }
    // The place in llama.cpp's part of a cell's position, cells in the order of their numbers; past the last: of the
    // flag that V is transposed, which a count of layers, a type and the bytes of a cell follow.
    size_t llama_position(int i) const { return llama_state + 16 + 12 * size_t(i); }
    kvmerge_status restore(kvmerge_cache * cache) {
        uint64_t sum = 1469598103934665603u;
        for (size_t i = SUMMED; i < bytes.size(); i += 8) {
            uint64_t word = 0;
            std::memcpy(&word, bytes.data() + i, std::min<size_t>(8, bytes.size() - i));
            sum = (sum ^ word) * 1099511628211u;
            sum ^= sum >> 29;
        }
        std::memcpy(bytes.data() + SUMMED - sizeof sum, &sum, sizeof sum);
        return kvmerge_cache_restore(cache, bytes.data(), bytes.size());
    }

    std::vector<char> bytes;
    int32_t used, n_tokens;
    size_t llama_state, columns, held;
};

// With a sum that is right, so that what they say is looked at.
void refuses_states_that_contradict_themselves(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    Run saved(model, c), run(model, c), never(model, c);
    saved.read(tokens.data(), 100);
    run.read(tokens.data() + 100, 70);
    never.read(tokens.data() + 100, 70);
    const Forged state(saved.state(), true);
    const int32_t used = state.used, position = state.int32(Forged::POSITION);
    CHECK(used > CELLS && state.int32(state.llama_position(0)) == 0);
    const auto contradicts = [&](Forged forged) {
        refused(forged.restore(run.cache), KVMERGE_E_ARGUMENT, "contradicts itself");
    };
    for (const int32_t other : {INT32_MAX, INT32_MAX - 10, position + 10, position - 1, used - 1, 0, -1}) {
        if (c.position_range == 0 || other > position || other < used) {
            contradicts(Forged(state).put(Forged::POSITION, other));
        }
        if (other != position - 1) {
            contradicts(Forged(state).put(Forged::POSITION, other).put(Forged::TOKENS, other));
        }
    }
    for (const int32_t pinned : {-1, CELLS - 1, CELLS, used, used + 1, INT32_MAX}) {
        contradicts(Forged(state).put(Forged::PINNED, pinned));
    }
    contradicts(Forged(state).put(Forged::TOKENS, INT32_MAX));
    contradicts(Forged(state).put(Forged::TOKENS, 1 << 30));
    const size_t newest = state.held + 4 * size_t(used - 1);
    for (int32_t i = 0; i < CELLS - 1; i++) { // one of the first cells as the one that stays behind them
        const int32_t back = c.position_range > 0 ? std::max(0, position - c.position_range) : 0;
        const size_t stays = newest - 4 * size_t(back), first = state.held + 4 * size_t(i);
        contradicts(Forged(state).put(stays, state.int32(first)).put(first, state.int32(stays)));
    }
    Forged elsewhere = state; // one of the first cells is free
    for (size_t at = state.held; at < state.llama_state; at += 4) {
        if (at < state.held + 4 * size_t(used)
                ? state.int32(at) == 7
                : at >= state.columns && (at - state.columns) / 4 / size_t(used) % 8 == 0 && state.int32(at) == 7) {
            elsewhere.put(at, THERE - 1);
        }
    }
    contradicts(elsewhere);
    contradicts(Forged(state).put(state.columns + 3 * 4 * size_t(used), 101)); // tokens merged into the first cell

    for (const int32_t other : {-1, 1, position, INT32_MAX, 1 << 20}) {
        refused(Forged(state).put(state.llama_position(0), other).restore(run.cache), KVMERGE_E_ARGUMENT,
                "llama.cpp's ");
    }
    const size_t flag = state.llama_position(used), row = flag + 12;
    CHECK(state.int32(flag) == !c.flash && state.int32(flag + 4) == TinyGguf::LAYERS);
    refused(Forged(state).put(flag, 1 - state.int32(flag)).restore(run.cache), KVMERGE_E_STATE, "layout");
    for (const int32_t bytes : {0, state.int32(row) + 1, state.int32(row) * 2, INT32_MAX}) {
        refused(Forged(state).put(row, bytes).restore(run.cache), KVMERGE_E_STATE, "layout");
    }
    CHECK(run.state() == never.state()); // nothing has changed
    ok(Forged(state).restore(run.cache));
    CHECK(run.read(tokens.data() + 100, 90) == saved.read(tokens.data() + 100, 90));
}

// A text without end has more tokens than its state has bytes.
void takes_states_of_endless_texts(llama_model * model, const Case & c) {
    const auto without_fates = [](auto & p) { p.record_fates = 0; };
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    Run saved(model, c, without_fates), run(model, c, without_fates);
    saved.read(tokens.data(), 200);
    Forged state(saved.state(), false);
    ok(state.put(Forged::TOKENS, 1 << 30).restore(run.cache));
    CHECK(run.usage().n_tokens == 1 << 30);
    CHECK(run.read(tokens.data() + 200, 90) == saved.read(tokens.data() + 200, 90));
}

// A caller that decodes itself, plans with kvmerge_cache_plan and commits gets what kvmerge_cache_decode gives.
void a_caller_may_decode_itself(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 200);
    Run own(model, c), whole(model, c);
    for (int at = 0; at + BLOCK <= 200; at += BLOCK) {
        ok(kvmerge_observer_begin(own.observer));
        std::vector<llama_token> block(tokens.begin() + at, tokens.begin() + at + BLOCK);
        const kvmerge_cache_used before = own.usage();
        std::vector<llama_pos> position;
        for (int i = 0; i < BLOCK; i++) {
            position.push_back(before.position + i);
        }
        llama_batch batch = llama.llama_batch_get_one(block.data(), BLOCK);
        batch.pos = position.data();
        CHECK(llama.llama_decode(own.context, batch) == 0);
        llama.llama_synchronize(own.context);
        kvmerge_block_stats stats;
        ok(kvmerge_cache_take(own.cache, BLOCK, &stats));
        CHECK(stats.n_tokens == BLOCK && stats.mass);
        refused(kvmerge_cache_take(own.cache, BLOCK - 1, nullptr), KVMERGE_E_UNSUPPORTED, "16 cache writes for 15");
        refused(kvmerge_cache_take(own.cache, BLOCK, nullptr), KVMERGE_E_ARGUMENT, "was the block taken before");
        if (own.usage().over) {
            refused(kvmerge_cache_commit(own.cache), KVMERGE_E_STATE, "has no plan yet");
            ok(kvmerge_cache_plan(own.cache));
            ok(kvmerge_cache_commit(own.cache));
        } else {
            refused(kvmerge_cache_plan(own.cache), KVMERGE_E_STATE, "no compression is due");
        }
        whole.read(tokens.data() + at, BLOCK);
    }
    CHECK(own.state() == whole.state());
}

// A cache of a stream gives what one of a context of its own gives, and they take each other's states.
void holds_a_stream(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = tokens_of(1, 300);
    Run alone(model, c), stream(model, c, {}, true), other(model, c, {}, true);
    CHECK(alone.read(tokens.data(), 150) == stream.read(tokens.data(), 150));
    const std::vector<char> state = alone.state(), of_stream = stream.state();
    ok(kvmerge_cache_restore(other.cache, state.data(), state.size()));
    ok(kvmerge_cache_restore(alone.cache, of_stream.data(), of_stream.size()));
    for (int i = 150; i < 230; i++) {
        const std::vector<float> expected = stream.read(tokens.data() + i, 1);
        CHECK(expected == alone.read(tokens.data() + i, 1) && expected == other.read(tokens.data() + i, 1));
    }
}

} // namespace

int main(int argc, char ** argv) {
    llama_model * const model = tiny_model_for(argc, argv);
    const Case cases[] = {{"F16", false, GGML_TYPE_F16, KVMERGE_BIAS_FOLDED, 0, 0, false},
                          {"F16, flash, calibrated", true, GGML_TYPE_F16, KVMERGE_BIAS_FOLDED, 0, 0, true},
                          {"Q8_0, flash", true, GGML_TYPE_Q8_0, KVMERGE_BIAS_FOLDED,
                           KVMERGE_OBSERVE_ENTROPY | KVMERGE_OBSERVE_QUERY_HEADS, 0, false},
                          {"Q4_0, flash, calibrated", true, GGML_TYPE_Q4_0, KVMERGE_BIAS_FOLDED, 0, 0, true},
                          {"F32, exact bias", false, GGML_TYPE_F32, KVMERGE_BIAS_EXACT, 0, 0, false},
                          {"F16, flash, position range", true, GGML_TYPE_F16, KVMERGE_BIAS_FOLDED, 0, 64, false},
                          {"F16, stopped", true, GGML_TYPE_F16, KVMERGE_BIAS_NONE, KVMERGE_OBSERVE_STOP, 0, false},
                          {"F16, flash, prompts", true, GGML_TYPE_F16, KVMERGE_BIAS_FOLDED, 0, 64, true, 5 * BLOCK}};
    if (std::getenv("KVMERGE_TEST_EMULATED")) { // a hundred times slower: one case has to do
        stays_within_its_cells(model, cases[1]);
        holds_a_stream(model, cases[1]);
        llama.llama_model_free(model);
        std::printf("ok, one case\n");
        return 0;
    }
    for (const Case & c : cases) {
        std::printf("%s\n", c.name);
        stays_within_its_cells(model, c);
        goes_on_from_a_state(model, c);
        keeps_what_is_pinned(model, c);
        reads_prompts_in_their_own_blocks(model, c);
        if (c.prompt_block == 0) { // it decodes blocks
            a_caller_may_decode_itself(model, c);
        }
        holds_a_stream(model, c);
    }
    refuses_what_is_no_state(model, cases[0]);
    is_broken_by_halves_only(model, cases[0]);
    is_broken_in_the_midst_of_a_block(model, cases[0]);
    keeps_its_observer(model, cases[0]);
    refuses_what_does_not_go_together(model, cases[0]);
    for (const Case & c : {cases[0], cases[5]}) {
        refuses_states_that_contradict_themselves(model, c);
    }
    takes_states_of_endless_texts(model, cases[5]);
    llama.llama_model_free(model);
    std::printf("ok\n");
}
