// What a token and a block of a cache cost on a GPU, what a failure there leaves, and a state that goes on there. The
// CUDA part is the shim's, in the real llama.cpp, of whose memory the observer is told that it is a GPU's.
#include "isa.hpp"
#include "real_llama.hpp"

#include "cuda_runtime.h"

#include "ggml.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

namespace {

constexpr int LAYERS = 4, KV_HEADS = TinyGguf::KV_HEADS, HEADS = LAYERS * KV_HEADS, DIM = TinyGguf::HEAD_SIZE;
constexpr int CELLS = 96, BLOCK = 32, PROMPT_BLOCK = 64, THERE = 256;

struct Case {
    const char * name;
    bool calibrated = false;
    int observe = KVMERGE_OBSERVE_MASS;
    ggml_type type = GGML_TYPE_F16;
    int position_range = 0;
    int bias = KVMERGE_BIAS_FOLDED;
    int mass_queries = 0;
};

// What ggml was asked for, beside the runtime.
struct Read {
    int calls = 0;
    size_t bytes = 0, of_cells = 0;
} got;

void tensor_get(const ggml_tensor * t, void * to, size_t offset, size_t size) {
    got.calls++;
    got.bytes += size;
    got.of_cells += std::strncmp(t->name, "cache_", 6) == 0 ? size : 0;
    llama.ggml_backend_tensor_get(t, to, offset, size);
}

void refused(kvmerge_status status, kvmerge_status expected, const char * why) {
    if (status != expected || !std::strstr(kvmerge_last_error(), why)) {
        std::printf("status %d, '%s' where '%s' was expected\n", status, kvmerge_last_error(), why);
        std::exit(1);
    }
}

// A context with an observer and a cache of it, on the GPU.
struct Run {
    kvmerge_observer * observer = nullptr;
    llama_context * context = nullptr;
    kvmerge_cache * cache = nullptr;
    int stops = 0;

    Run(llama_model * model, const Case & c) {
        kvmerge_observer_params p = {};
        p.n_layer = LAYERS;
        p.n_head = TinyGguf::HEADS;
        p.n_head_kv = KV_HEADS;
        p.n_cells = THERE;
        p.n_tokens = PROMPT_BLOCK;
        p.observe = c.observe;
        p.bias = c.bias;
        p.mass_power = c.calibrated ? 1 : 1.5f;
        p.mass_queries = c.mass_queries;
        p.query_decay = .7f;
        p.ridge = .05f;
        p.n_threads = 2;
        p.ggml = ggml_entries();
        p.ggml.tensor_get = tensor_get;
        p.ggml.buffer_is_host = [](ggml_backend_buffer *) { return false; };
        p.device = KVMERGE_DEVICE_CUDA;
        ok(kvmerge_observer_create(&p, &observer));
        llama_context_params cp = llama.llama_context_default_params();
        cp.n_ctx = THERE;
        cp.n_batch = cp.n_ubatch = PROMPT_BLOCK;
        cp.n_threads = cp.n_threads_batch = 1;
        cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        cp.type_k = cp.type_v = c.type;
        cp.cb_eval = [](ggml_tensor * node, bool ask, void * run) {
            Run & r = *static_cast<Run *>(run);
            const bool ours = kvmerge_eval_callback(node, ask, r.observer);
            r.stops += ask && ours;
            return ours;
        };
        cp.cb_eval_user_data = this;
        context = llama.llama_init_from_model(model, cp);
        CHECK(context);
        kvmerge_cache_params q;
        ok(kvmerge_cache_defaults(&q));
        q.n_cells = CELLS;
        q.n_block = BLOCK;
        q.n_prompt_block = PROMPT_BLOCK;
        q.position_range = c.position_range;
        q.llama = cache_entries();
        std::vector<float> calibration = Random(5).normals(size_t(HEADS) * (6 + DIM));
        for (float & w : calibration) {
            w *= .3f;
        }
        if (c.calibrated) {
            q.calibration = calibration.data();
            q.calibration_dim = DIM;
            q.key_cost = .8;
        }
        ok(kvmerge_cache_create(&q, observer, context, 0, &cache));
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
};

shim::Counts operator-(const shim::Counts & a, const shim::Counts & b) {
    return {a.launches - b.launches, a.copies - b.copies,           a.fills - b.fills,
            a.waits - b.waits,       a.allocations - b.allocations, a.bytes - b.bytes};
}

int things(const shim::Counts & c) {
    return c.launches + c.copies + c.fills;
}

// One block of a cache that is full: its work, but for that of its ubatches. A ubatch's is one launch of the GPU's, of
// which the host hears a byte a cell, and 8 bytes a token that ggml brings. `waits`: of a block and of a ubatch.
void count_a_block(Run & run, const llama_token * tokens, int n, bool generates, int block_waits, int ubatch_waits) {
    const shim::Counts before = shim::counts();
    const int ubatches = generates ? n : 1;
    got = {};
    run.stops = 0;
    for (int i = 0; i < ubatches; i++) {
        const shim::Counts start = shim::counts();
        run.read(tokens + i, generates ? 1 : n);
        const shim::Counts one = shim::counts() - start;
        if (generates && i > 0 && i + 1 < n) { // the first begins the block, the last ends it
            CHECK(things(one) == 1 && one.launches == 1 && one.allocations == 0 && one.bytes == 0);
            CHECK(one.waits <= ubatch_waits);
        }
    }
    const shim::Counts all = shim::counts() - before;
    const size_t bytes = all.bytes + got.bytes + size_t(ubatches) * THERE;
    std::printf("  %2d ubatches: %d launches, %d copies, %d fills, %d waits, %d allocations, %zu bytes\n", ubatches,
                all.launches - ubatches, all.copies, all.fills, all.waits, all.allocations, bytes);
    CHECK(run.stops == 0 && got.calls == ubatches && got.of_cells == 0);
    CHECK(things(all) - ubatches <= 12 * LAYERS);
    CHECK(bytes <= size_t(16) * HEADS * (CELLS + n));
    CHECK(all.waits <= block_waits + ubatches * ubatch_waits && all.waits >= 1);
    CHECK(all.allocations == 0);
}

void test_costs(llama_model * model, const Case & c) {
    std::printf("%s\n", c.name);
    const std::vector<llama_token> tokens = random_tokens(2048);
    Run run(model, c);
    const llama_token * next = tokens.data();
    const auto read = [&](int n, bool generates, int block_waits, int ubatch_waits) {
        count_a_block(run, next, n, generates, block_waits, ubatch_waits);
        next += n;
    };
    run.read(next, PROMPT_BLOCK); // memory is taken that is kept
    next += PROMPT_BLOCK;
    CHECK(run.usage().n_used == PROMPT_BLOCK);
    read(BLOCK, true, 1, 0); // still fits, and the next ones do not
    CHECK(run.usage().n_used == CELLS);
    read(PROMPT_BLOCK, false, 1, 0);
    read(BLOCK, true, 1, 0);
    CHECK(run.usage().n_used == CELLS);
    // A GPU that has never done anything when it is asked: the host waits before the next graph, too.
    shim::slow() = true;
    read(PROMPT_BLOCK, false, 2, 1);
    read(BLOCK, true, 2, 1);
    shim::slow() = false;
}

// A GPU that is slow gives the same.
void test_order(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = random_tokens(500);
    Run fast(model, c), slow(model, c);
    for (Run * run : {&fast, &slow}) {
        shim::slow() = run == &slow;
        run->read(tokens.data(), 160);
        for (int i = 160; i < 230; i++) {
            run->read(&tokens[size_t(i)], 1);
        }
    }
    CHECK(fast.state() == slow.state());
    CHECK(fast.read(&tokens[230], 1) == slow.read(&tokens[230], 1));
    shim::slow() = false;
}

// A state that is saved in the midst of rewriting goes on in another cache with the same bits.
void test_state(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = random_tokens(500);
    Run run(model, c);
    for (const int n : {40, 15}) { // not full; compressed, and in the midst of a block
        run.read(tokens.data() + run.usage().n_tokens, n);
        const std::vector<char> state = run.state();
        Run fresh(model, c), used(model, c);
        used.read(random_tokens(PROMPT_BLOCK + BLOCK + 1, 3).data(), PROMPT_BLOCK + BLOCK + 1);
        const std::vector<float> logits = run.read(tokens.data() + run.usage().n_tokens, 50);
        const std::vector<char> later = run.state();
        for (Run * other : {&fresh, &used}) {
            ok(kvmerge_cache_restore(other->cache, state.data(), state.size()));
            CHECK(other->state() == state);
            CHECK(other->read(tokens.data() + other->usage().n_tokens, 50) == logits && other->state() == later);
        }
    }
}

// Rewriting is queued, and fails when nobody looks: the next call says so, and nothing goes on.
void test_late_failure(llama_model * model, const Case & c, const std::function<kvmerge_status(Run &)> & next) {
    const std::vector<llama_token> tokens = random_tokens(300);
    Run run(model, c);
    run.read(tokens.data(), 2 * PROMPT_BLOCK);
    CHECK(run.usage().n_used == CELLS && !run.usage().broken);
    shim::failing() = cudaErrorLaunchFailure;
    refused(next(run), KVMERGE_E_DEVICE, "rewriting cells failed");
    CHECK(std::strstr(kvmerge_last_error(), "Start the program anew"));
    shim::failing() = cudaSuccess;
    CHECK(run.usage().broken && kvmerge_cache_flush(run.cache) == KVMERGE_E_STATE);
    size_t size;
    CHECK(kvmerge_cache_state_size(run.cache, &size) == KVMERGE_E_STATE);
    CHECK(kvmerge_cache_decode(run.cache, tokens.data(), 1, nullptr) == KVMERGE_E_STATE);
    CHECK(kvmerge_cache_clear(run.cache) == KVMERGE_E_STATE);
}

// A failure is the waiting one's to tell, and still known to be another's too.
void test_failure_told_to_another(llama_model * model, const Case & c) {
    const std::vector<llama_token> tokens = random_tokens(300);
    Run run(model, c), other(model, c);
    other.read(tokens.data(), 2 * PROMPT_BLOCK);
    run.read(tokens.data(), 2 * PROMPT_BLOCK);
    ok(kvmerge_cache_flush(other.cache));
    run.read(tokens.data(), PROMPT_BLOCK);
    size_t size;
    ok(kvmerge_cache_state_size(other.cache, &size));
    shim::failing() = cudaErrorLaunchFailure;
    refused(kvmerge_cache_save(other.cache, std::vector<char>(size).data(), size), KVMERGE_E_DEVICE, "Start the");
    shim::failing() = cudaSuccess;
    CHECK(!other.usage().broken);
    refused(kvmerge_cache_flush(run.cache), KVMERGE_E_DEVICE, "rewriting cells failed");
    CHECK(run.usage().broken);
}

// Others' plans, as strategies in Java make them: columns go to the host and plans come back, no key and no value.
// Those with the highest `score` stay.
void test_own_plans(llama_model * model, const Case & c, float (*score)(const kvmerge_cache_column &, int)) {
    std::printf("%s\n", c.name);
    std::vector<llama_token> tokens = random_tokens(2000);
    Run run(model, c);
    for (int block = 0; block < 3; block++) {
        ok(kvmerge_observer_begin(run.observer));
        llama_batch batch = llama.llama_batch_get_one(tokens.data() + block * PROMPT_BLOCK, PROMPT_BLOCK);
        CHECK(llama.llama_decode(run.context, batch) == 0);
        llama.llama_synchronize(run.context);
        const shim::Counts before = shim::counts();
        got = {};
        ok(kvmerge_cache_take(run.cache, PROMPT_BLOCK, nullptr));
        if (!run.usage().over) {
            continue;
        }
        for (int head = 0; head < HEADS; head++) {
            kvmerge_cache_column of;
            ok(kvmerge_cache_columns(run.cache, head / KV_HEADS, head % KV_HEADS, &of));
            std::vector<int> order(size_t(of.n) - 1);
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score(of, a) > score(of, b); });
            std::vector<int32_t> target(size_t(of.n), -1);
            const std::vector<float> weight(size_t(of.n), 1.0f);
            target[size_t(of.n) - 1] = of.n - 1;
            for (int i = 0; i < CELLS - 1; i++) {
                target[size_t(order[size_t(i)])] = order[size_t(i)];
            }
            ok(kvmerge_cache_stage(run.cache, head / KV_HEADS, head % KV_HEADS, of.n, target.data(), weight.data(),
                                   nullptr));
        }
        ok(kvmerge_cache_commit(run.cache));
        const shim::Counts all = shim::counts() - before;
        const size_t rows = size_t(HEADS) * THERE;
        std::printf("  %d launches, %d copies, %d waits, %d allocations, %zu bytes: %.1f a cell and head\n",
                    all.launches, all.copies, all.waits, all.allocations, all.bytes, double(all.bytes) / double(rows));
        CHECK(got.of_cells == 0 && run.usage().n_used == CELLS);
        CHECK(all.bytes <= (24 + 8) * rows + 4096); // columns, plans; descriptors and verdicts
    }
}

} // namespace

int main(int argc, char ** argv) {
    llama_model * const model = tiny_model_for(argc, argv, LAYERS);
    constexpr int ENTROPY = KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY;
    const Case plain = {"F16"}, calibrated = {"a calibration, entropies", true, ENTROPY},
               endless = {"Q4_0, positions that go back", true, KVMERGE_OBSERVE_MASS, GGML_TYPE_Q4_0, 100},
               no_bias = {"no bias", false, KVMERGE_OBSERVE_MASS, GGML_TYPE_F16, 0, KVMERGE_BIAS_NONE};
    std::vector<Case> costs = {calibrated, endless, no_bias}, states = {endless, calibrated};
#if defined(__SANITIZE_ADDRESS__) // fibers are slow there
    costs.erase(costs.begin() + 1, costs.end());
    states.pop_back();
#endif
    for (const Case & c : costs) {
        test_costs(model, c);
    }
    const auto by_mass = [](const kvmerge_cache_column & of, int i) { return of.mass[i]; };
    const auto by_position = [](const kvmerge_cache_column & of, int i) {
        return float(of.position[i] < 4 ? INT32_MAX : of.position[i]);
    };
    Case window = {"plans like H2O's"};
    test_own_plans(model, window, by_mass);
    window.name = "plans like SnapKV's and TOVA's", window.mass_queries = 8;
    test_own_plans(model, window, by_mass);
    window = {"plans like streaming-llm's", false, 0};
    window.bias = KVMERGE_BIAS_NONE;
    test_own_plans(model, window, by_position);
    for (const Case & c : states) {
        std::printf("order and state: %s\n", c.name);
        test_order(model, c);
        test_state(model, c);
    }
    test_late_failure(model, plain,
                      [](Run & r) { return kvmerge_cache_decode(r.cache, random_tokens(1).data(), 1, nullptr); });
    test_late_failure(model, plain, [](Run & r) { return kvmerge_cache_flush(r.cache); });
    test_late_failure(model, plain, [](Run & r) {
        size_t size;
        ok(kvmerge_cache_state_size(r.cache, &size));
        return kvmerge_cache_save(r.cache, std::vector<char>(size).data(), size);
    });
    test_late_failure(model, plain, [](Run & r) {
        kvmerge_cache_column column;
        return kvmerge_cache_columns(r.cache, 0, 0, &column);
    });
    test_failure_told_to_another(model, plain);
    llama.llama_model_free(model);
    std::printf("ok\n");
}
