// Queries that are captured while the real llama.cpp's graph runs, against stopping it at each layer: the same
// statistics, the same logits, and no stop. With KVMERGE_ON_SHIM, captured as on a GPU: the CUDA part is the shim's,
// and the observer is told that llama.cpp's memory is not the host's. It is compared with stopping on the CPU.
#include "isa.hpp"
#include "real_llama.hpp"

#include "ggml.h"

#ifdef KVMERGE_ON_SHIM
#    include "cuda_runtime.h"
constexpr bool ON_GPU = true;
#else
constexpr bool ON_GPU = false;
#endif

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

namespace {

constexpr int CELLS = 256, LAYERS = TinyGguf::LAYERS, KV_HEADS = TinyGguf::KV_HEADS, DIM = TinyGguf::HEAD_SIZE;
constexpr int ATTENTION = KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY;

struct Settings {
    const char * name;
    bool flash = true;
    ggml_type type = GGML_TYPE_F16;
    int ubatch = 64;
    int observe = ATTENTION | KVMERGE_OBSERVE_QUERIES;
    int mass_queries = 0;
    float mass_power = 1;
    int bias = KVMERGE_BIAS_NONE;
    bool gpu = ON_GPU;
    int mass_sample = 0;
};

// What a host's own callback wants.
struct Host {
    std::function<bool(const ggml_tensor *)> asks = [](const ggml_tensor *) { return false; };
    std::function<bool(const ggml_tensor *)> goes_on = [](const ggml_tensor *) { return true; };
};

std::vector<llama_token> text(int n) {
    Random random(11);
    std::vector<llama_token> tokens(static_cast<size_t>(n));
    for (llama_token & t : tokens) {
        t = random.integer(0, TinyGguf::VOCABULARY - 1);
    }
    return tokens;
}

// A context, the observer of it, and what was done in it.
struct Run {
    kvmerge_observer * observer = nullptr;
    llama_context * context = nullptr;
    Host host;
    bool aborts = false;
    int stops = 0, copies = 0; // of the graph; of queries, at each layer's attention
    std::vector<float> logits;

    Run(llama_model * model, const Settings & s, Host own = {}) : host(std::move(own)) {
        kvmerge_observer_params p = {};
        p.n_layer = LAYERS;
        p.n_head = TinyGguf::HEADS;
        p.n_head_kv = KV_HEADS;
        p.n_cells = CELLS;
        p.n_tokens = 96;
        p.observe = s.observe;
        p.bias = s.bias;
        p.mass_power = s.mass_power;
        p.mass_queries = s.mass_queries;
        p.mass_sample = s.mass_sample;
        p.query_decay = .7f;
        p.ridge = .05f;
        p.n_threads = 2;
        p.ggml = {llama.ggml_backend_tensor_get, llama.ggml_backend_tensor_set, llama.ggml_backend_buffer_is_host};
        if (s.gpu) {
            p.device = KVMERGE_DEVICE_CUDA;
            p.ggml.buffer_is_host = [](ggml_backend_buffer *) { return false; };
        }
        ok(kvmerge_observer_create(&p, &observer));
        llama_context_params cp = llama.llama_context_default_params();
        cp.n_ctx = CELLS;
        cp.n_batch = 64;
        cp.n_ubatch = uint32_t(s.ubatch);
        cp.n_threads = cp.n_threads_batch = 1;
        cp.flash_attn_type = s.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        cp.type_k = cp.type_v = s.type;
        cp.cb_eval = [](ggml_tensor * node, bool ask, void * run) { return static_cast<Run *>(run)->saw(node, ask); };
        cp.cb_eval_user_data = this;
        cp.abort_callback = [](void * run) { return static_cast<Run *>(run)->aborts; };
        cp.abort_callback_data = this;
        context = llama.llama_init_from_model(model, cp);
        CHECK(context);
        begin();
    }
    Run(const Run &) = delete;
    ~Run() {
        llama.llama_free(context);
        if (observer) {
            kvmerge_observer_free(observer);
        }
    }

    // As kvmerge.h says that a host's own callback has to.
    bool saw(ggml_tensor * node, bool ask) {
        const bool ours = kvmerge_eval_callback(node, ask, handle());
        if (!ask) {
            return ours && host.goes_on(node);
        }
        stops += ours;
        if (node->op == GGML_OP_FLASH_ATTN_EXT) {
            const ggml_tensor * const q = node->src[0]->src[0];
            copies += q->op == GGML_OP_CPY;
        }
        return ours || host.asks(node);
    }
    kvmerge_observer * freed = nullptr;
    kvmerge_observer * handle() const { return observer ? observer : freed; }

    void begin() { ok(kvmerge_observer_begin(observer)); }
    int decode(std::vector<llama_token> tokens, int from, int to) {
        const int status = llama.llama_decode(context, llama.llama_batch_get_one(tokens.data() + from, to - from));
        llama.llama_synchronize(context);
        if (status == 0) {
            const float * const x = llama.llama_get_logits_ith(context, -1);
            logits.insert(logits.end(), x, x + TinyGguf::VOCABULARY);
        }
        return status;
    }
    void generate(const std::vector<llama_token> & tokens, int from, int to) {
        for (int i = from; i < to; i++) {
            CHECK(decode(tokens, i, i + 1) == 0);
        }
    }
    llama_memory_t memory() const { return llama.llama_get_memory(context); }
};

// That all statistics of two observers' blocks are the same.
void same_statistics(const Run & run, const Run & stopped, const Settings & s, int n_layer_seen = LAYERS) {
    // Tensor cores take queries in half precision, for keys in half precision.
    const bool halves = ON_GPU && s.type == GGML_TYPE_F16 && s.flash;
    const double absolute = halves ? 1e-3 : 1e-6, relative = halves ? 2e-3 : 1e-5;
    kvmerge_block_stats a, b;
    ok(kvmerge_observer_stats(run.observer, &a));
    ok(kvmerge_observer_stats(stopped.observer, &b));
    CHECK(a.n_tokens == b.n_tokens && a.n_tokens > 0);
    CHECK(a.n_layer_seen == b.n_layer_seen && a.n_layer_seen == ((s.observe & ATTENTION) != 0 ? n_layer_seen : 0));
    CHECK(std::memcmp(a.token_cell, b.token_cell, size_t(a.n_tokens) * sizeof(int32_t)) == 0);
    CHECK(!a.mass == !b.mass && !a.mass == ((s.observe & ATTENTION) == 0));
    for (int i = 0; a.mass && i < LAYERS * KV_HEADS * CELLS; i++) {
        CHECK_NEAR(a.mass[i], b.mass[i], absolute, relative);
    }
    CHECK(!a.entropy == !b.entropy && !a.entropy == ((s.observe & KVMERGE_OBSERVE_ENTROPY) == 0));
    for (int row = 0; a.entropy && row < LAYERS * TinyGguf::HEADS; row++) {
        for (int t = 0; t < a.n_tokens; t++) {
            CHECK_NEAR(a.entropy[row * 96 + t], b.entropy[row * 96 + t], absolute, relative);
        }
    }
    for (int i = 0; (s.observe & KVMERGE_OBSERVE_QUERIES) && i < n_layer_seen * KV_HEADS; i++) {
        std::vector<float> mean_a(DIM), mean_b(DIM), second_a(DIM * DIM), second_b(DIM * DIM);
        ok(kvmerge_query_moments(run.observer, i / KV_HEADS, i % KV_HEADS, mean_a.data(), second_a.data()));
        ok(kvmerge_query_moments(stopped.observer, i / KV_HEADS, i % KV_HEADS, mean_b.data(), second_b.data()));
        for (int j = 0; j < DIM * DIM; j++) {
            CHECK_NEAR(second_a[j], second_b[j], 1e-5, 1e-5);
            CHECK_NEAR(mean_a[j % DIM], mean_b[j % DIM], 1e-5, 1e-5);
        }
    }
    CHECK(run.logits == stopped.logits);
}

Settings stopping(Settings s) {
    s.observe |= KVMERGE_OBSERVE_STOP;
    s.gpu = false;
    return s;
}

// Does the same in a context whose queries are captured and in one that stops, and compares.
void compare(llama_model * model, const Settings & s, const std::function<void(Run &)> & what) {
    Run run(model, s), stopped(model, stopping(s));
    what(run);
    what(stopped);
    same_statistics(run, stopped, s);
    CHECK(stopped.copies == 0 && stopped.stops > 0);
    CHECK(run.stops == 0 && run.copies > 0);
}

// A prompt in several ubatches, and in a block after it a generation token by token, whose graph llama.cpp uses again.
void test_blocks(llama_model * model, const Settings & s) {
    const std::vector<llama_token> tokens = text(120);
    Run run(model, s), stopped(model, stopping(s));
    for (Run * r : {&run, &stopped}) {
        CHECK(r->decode(tokens, 0, 50) == 0);
    }
    same_statistics(run, stopped, s);
    for (Run * r : {&run, &stopped}) {
        r->begin();
        r->generate(tokens, 50, 70);
    }
    same_statistics(run, stopped, s);
    for (Run * r : {&run, &stopped}) { // a block that nobody asks for; one of both kinds of ubatches
        r->begin();
        r->generate(tokens, 70, 75);
        r->begin();
        r->generate(tokens, 75, 77);
        CHECK(r->decode(tokens, 77, 110) == 0);
        r->generate(tokens, 110, 120);
    }
    same_statistics(run, stopped, s);
}

// Of a token of a generation: no stop, and a copy a layer.
void test_counts(llama_model * model) {
    const std::vector<llama_token> tokens = text(60);
    for (const bool flash : {true, false}) {
        for (const int stop : {0, int(KVMERGE_OBSERVE_STOP)}) {
            Settings s{"counts"};
            s.flash = flash;
            s.observe = ATTENTION | stop;
            Run run(model, s);
            CHECK(run.decode(tokens, 0, 40) == 0);
            run.stops = run.copies = 0;
            run.generate(tokens, 40, 60);
            const bool captured = flash && !stop;
            CHECK(run.copies == (captured ? 20 * LAYERS : 0) && run.stops == (captured ? 0 : 20 * LAYERS));
            kvmerge_block_stats stats;
            ok(kvmerge_observer_stats(run.observer, &stats));
            CHECK(stats.n_layer_seen == LAYERS && stats.n_tokens == 60);
        }
    }
}

// Of 60 queries in a block, 15 stand for four each: the third of every four. Their masses are told from blocks of one.
void test_sample(llama_model * model, bool flash) {
    const std::vector<llama_token> tokens = text(100);
    Settings s{"a sample of the queries"};
    s.flash = flash;
    s.observe = KVMERGE_OBSERVE_MASS;
    Run each(model, s);
    s.mass_sample = 15;
    Run run(model, s);
    const size_t all = size_t(LAYERS) * KV_HEADS * CELLS;
    std::vector<double> sum(all, 0.0);
    kvmerge_block_stats stats;
    for (Run * r : {&each, &run}) {
        CHECK(r->decode(tokens, 0, 40) == 0);
        r->begin();
    }
    for (int t = 0; t < 60; t++) {
        each.begin();
        each.generate(tokens, 40 + t, 41 + t);
        ok(kvmerge_observer_stats(each.observer, &stats));
        const double counts = !flash ? 1 : t % 4 == 2 ? 4 : 0; // without a capture, all are looked at
        for (size_t i = 0; i < all; i++) {
            sum[i] += counts * stats.mass[i];
        }
    }
    run.generate(tokens, 40, 100);
    ok(kvmerge_observer_stats(run.observer, &stats));
    for (size_t i = 0; i < all; i++) {
        CHECK_NEAR(stats.mass[i], sum[i], 1e-5, 1e-5);
    }
}

#ifdef KVMERGE_ON_SHIM
// What a token and a block of a generation cost on a GPU.
void test_gpu_counts(llama_model * model) {
    const std::vector<llama_token> tokens = text(120);
    Settings s{"counts on a GPU"};
    s.bias = KVMERGE_BIAS_FOLDED;
    Run run(model, s);
    kvmerge_block_stats stats;
    CHECK(run.decode(tokens, 0, 40) == 0);
    ok(kvmerge_observer_stats(run.observer, &stats));
    const size_t all = size_t(LAYERS) * KV_HEADS * CELLS;
    for (int block = 0; block < 2; block++) { // in the first, memory is allocated that is kept
        run.begin();
        run.stops = 0;
        run.generate(tokens, 40 + block * 40, 42 + block * 40);
        shim::counts() = {};
        run.generate(tokens, 42 + block * 40, 80 + block * 40);
        const shim::Counts token = shim::counts();
        CHECK(run.stops == 0 && token.launches == 38 && token.copies == 0 && token.fills == 0);
        CHECK(token.waits == 0 && token.allocations == 0 && token.bytes == 0);

        shim::counts() = {};
        ok(kvmerge_observer_stats(run.observer, &stats));
        CHECK(stats.n_layer_seen == LAYERS && stats.n_tokens == 40);
        CHECK(shim::counts().waits == 1);
        // Cells 0..59 are merged in pairs.
        std::vector<int32_t> target(all, -1), position(all, 0), dest(all, 0);
        std::vector<float> weight(all, 0.5f);
        for (size_t i = 0; i < all; i++) {
            const int cell = int(i % CELLS);
            if (cell < 60) {
                target[i] = cell / 2 * 2;
                position[i] = cell;
                dest[i] = cell / 2 * 2;
            }
        }
        kvmerge_moves moves = {};
        moves.target = target.data();
        moves.weight = weight.data();
        moves.position = position.data();
        moves.dest = dest.data();
        moves.pivot_frame = 1;
        ok(kvmerge_apply(run.observer, &moves));
        const shim::Counts whole = shim::counts();
        std::printf("  a block: %d launches, %d copies, %d fills, %d waits, %d allocations, %zu bytes\n",
                    whole.launches, whole.copies, whole.fills, whole.waits, whole.allocations, whole.bytes);
        CHECK(whole.launches + whole.copies + whole.fills <= 12 * LAYERS);
        CHECK(whole.bytes <= 16 * all);
        CHECK(whole.waits == 2); // before the host plans, and before llama.cpp goes on
    }
}
#endif

// Keys that a block's queries saw change before its statistics are asked for.
void test_changed_keys(llama_model * model) {
    const Settings s{"changed keys"};
    const std::vector<llama_token> tokens = text(60);
    compare(model, s, [&](Run & r) { // cells that were seen are written anew
        CHECK(r.decode(tokens, 0, 30) == 0);
        CHECK(llama.llama_memory_seq_rm(r.memory(), 0, 20, 30));
        r.generate(tokens, 30, 45);
    });
    compare(model, s, [&](Run & r) { // positions are shifted, in a graph of its own
        CHECK(r.decode(tokens, 0, 30) == 0);
        CHECK(llama.llama_memory_seq_rm(r.memory(), 0, 4, 8));
        llama.llama_memory_seq_add(r.memory(), 0, 8, 30, -4);
        r.generate(tokens, 30, 45);
    });
    compare(model, s, [&](Run & r) { // this library writes
        CHECK(r.decode(tokens, 0, 30) == 0);
        const std::vector<float> keys(DIM, 3.0f);
        const int32_t cell = 7;
        ok(kvmerge_write_cells(r.observer, 1, 1, &cell, 1, keys.data(), nullptr));
        r.generate(tokens, 30, 35);
    });
    compare(model, s, [&](Run & r) { // and rewrites
        CHECK(r.decode(tokens, 0, 30) == 0);
        const size_t all = size_t(LAYERS) * KV_HEADS * CELLS;
        std::vector<int32_t> target(all, -1), position(all, 0), dest(all, 0);
        const std::vector<float> weight(all, 1.0f);
        for (size_t i = 0; i < all; i++) {
            const int cell = int(i % CELLS);
            if (cell < 20) {
                target[i] = cell;
                position[i] = cell;
                dest[i] = 19 - cell;
            }
        }
        kvmerge_moves moves = {};
        moves.target = target.data();
        moves.weight = weight.data();
        moves.position = position.data();
        moves.dest = dest.data();
        ok(kvmerge_apply(r.observer, &moves));
        r.generate(tokens, 30, 35);
    });
}

// A host's own callback: one that stops the graph anywhere gets the statistics of stops; one that stops it after the
// attention disturbs nothing; one that ends it midway leaves layers that were not seen.
void test_hosts(llama_model * model) {
    const Settings s{"hosts"};
    const std::vector<llama_token> tokens = text(60);
    const auto named = [](const char * name) {
        return [name](const ggml_tensor * t) { return std::strcmp(t->name, name) == 0; };
    };
    Run stopped(model, stopping(s));
    Host everywhere, after, midway;
    everywhere.asks = [](const ggml_tensor *) { return true; };
    after.asks = named("result_norm");
    midway.asks = named("l_out-0");
    Run all(model, s, everywhere), last(model, s, after);
    for (Run * r : {&stopped, &all, &last}) {
        CHECK(r->decode(tokens, 0, 30) == 0);
        r->generate(tokens, 30, 40);
    }
    CHECK(all.copies == 0 && all.stops == LAYERS * 11 && last.copies == LAYERS * 11 && last.stops == 0);
    same_statistics(all, stopped, s);
    same_statistics(last, stopped, s);

    midway.goes_on = [](const ggml_tensor * t) { return std::strcmp(t->name, "l_out-0") != 0; };
    Run ended(model, s, midway), ended_stopped(model, stopping(s), midway);
    for (Run * r : {&ended, &ended_stopped}) {
        r->decode(tokens, 0, 30);
        r->logits.clear(); // nothing that anybody computed
    }
    same_statistics(ended, ended_stopped, s, 1);
}

// A decode that is aborted: queries that never came are an error, and only of that block.
void test_abort(llama_model * model) {
    const Settings s{"abort"};
    const std::vector<llama_token> tokens = text(60);
    Run run(model, s);
    kvmerge_block_stats stats;
    CHECK(run.decode(tokens, 0, 30) == 0);
    run.aborts = true;
    CHECK(run.decode(tokens, 30, 31) != 0);
    CHECK(kvmerge_observer_stats(run.observer, &stats) == KVMERGE_E_STATE);
    CHECK(std::strstr(kvmerge_last_error(), "token 30 of the block never came"));
    run.aborts = false;
    run.begin();
    run.aborts = true;
    CHECK(run.decode(tokens, 30, 31) != 0);
    run.aborts = false;
    run.begin(); // asks for nothing of it
    run.generate(tokens, 30, 35);
    ok(kvmerge_observer_stats(run.observer, &stats));
    CHECK(stats.n_tokens == 5 && stats.n_layer_seen == LAYERS);
}

// The graph of a token is used again after its observer has gone: nothing is written to memory that went with it.
void test_free(llama_model * model) {
    const Settings s{"free"};
    const std::vector<llama_token> tokens = text(60);
    Run run(model, s), stopped(model, stopping(s));
    for (Run * r : {&run, &stopped}) {
        CHECK(r->decode(tokens, 0, 30) == 0);
        r->generate(tokens, 30, 35);
        ok(kvmerge_observer_free(r->observer));
        r->freed = r->observer;
        r->observer = nullptr;
        r->copies = 0;
        r->generate(tokens, 35, 40);
        CHECK(r->copies == 0);
    }
    CHECK(run.logits == stopped.logits);
}

} // namespace

int main(int argc, char ** argv) {
    llama_model * const model = tiny_model_for(argc, argv);
    constexpr int QUERIES = KVMERGE_OBSERVE_QUERIES, MASS = KVMERGE_OBSERVE_MASS;
    const Settings settings[] = {{"F16"},
                                 {"small ubatches", true, GGML_TYPE_F16, 16},
                                 {"F32", true, GGML_TYPE_F32, 32},
                                 {"Q8_0, power 1.5", true, GGML_TYPE_Q8_0, 64, ATTENTION, 0, 1.5f},
                                 {"Q5_1", true, GGML_TYPE_Q5_1, 64, ATTENTION},
                                 {"the last 8", true, GGML_TYPE_F16, 64, ATTENTION, 8},
                                 {"the last 8 of small ubatches", true, GGML_TYPE_F16, 16, MASS, 8},
                                 {"entropy of a window", true, GGML_TYPE_F16, 16, ATTENTION | QUERIES, 20},
                                 {"moments alone", true, GGML_TYPE_F16, 16, QUERIES},
                                 {"no flash attention", false, GGML_TYPE_F16, 16}};
    for (const Settings & s : settings) {
        std::printf("%s\n", s.name);
        test_blocks(model, s);
    }
    test_counts(model);
    test_sample(model, true);
    test_sample(model, false);
#ifdef KVMERGE_ON_SHIM
    test_gpu_counts(model);
#endif
    test_changed_keys(model);
    test_hosts(model);
    test_abort(model);
    test_free(model);
    llama.llama_model_free(model);
    std::printf("ok\n");
}
