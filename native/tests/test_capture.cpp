// Queries that are captured while the real llama.cpp's graph runs, against stopping it at each layer: the same queries,
// statistics and logits, and no stop. In memory of the host, and in memory that the observer is told is not the host's
// (Vulkan, Metal, RPC). With KVMERGE_ON_SHIM, captured as on a GPU: the CUDA part is the shim's. Those are compared
// with stopping on the CPU. With RPC servers as arguments ('make test-rpc'), the model is on them, and so is all
// memory.
#include "isa.hpp"
#include "real_llama.hpp"

#include "ggml.h"

#ifdef KVMERGE_ON_SHIM
#    include "cuda_runtime.h"
constexpr bool ON_GPU = true;
#else
constexpr bool ON_GPU = false;
#endif

#include <array>
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
    bool far = false; // in memory that only ggml's functions reach

    // Without flash attention, a stop shows the attention in memory of the host.
    bool captures() const { return flash || far || gpu || (observe & KVMERGE_OBSERVE_CAPTURE) != 0; }
};

// How often memory that is not the host's was used.
struct Counts {
    int queries = 0, keys = 0, others = 0; // brought to the host
    int buffers = 0;                       // that are alive
};
Counts counts;
int servers = 0;      // of RPC; 0: llama.cpp computes here
int room = INT32_MAX; // buffers that the backend still gives

// ggml's functions, for memory that is not the host's.
kvmerge_ggml far_entries() {
    kvmerge_ggml g = ggml_entries();
    g.buffer_is_host = [](ggml_backend_buffer * b) { return servers > 0 && llama.ggml_backend_buffer_is_host(b); };
    g.tensor_get = [](const ggml_tensor * t, void * to, size_t offset, size_t size) {
        const bool key = std::strncmp(t->name, "cache_k", 7) == 0, query = t->name[0] == '\0' && t->op == GGML_OP_NONE;
        (key ? counts.keys : query ? counts.queries : counts.others)++;
        llama.ggml_backend_tensor_get(t, to, offset, size);
    };
    g.buft_alloc_buffer = [](ggml_backend_buffer_type * type, size_t size) {
        if (room == 0) {
            return static_cast<ggml_backend_buffer *>(nullptr);
        }
        room--;
        counts.buffers++;
        return llama.ggml_backend_buft_alloc_buffer(type, size);
    };
    g.buffer_free = [](ggml_backend_buffer * buffer) {
        counts.buffers--;
        llama.ggml_backend_buffer_free(buffer);
    };
    return g;
}

// What a host's own callback wants.
struct Host {
    std::function<bool(const ggml_tensor *)> asks = [](const ggml_tensor *) { return false; };
    std::function<bool(const ggml_tensor *)> goes_on = [](const ggml_tensor *) { return true; };
};

// A context, the observer of it, and what was done in it.
struct Run {
    kvmerge_observer * observer = nullptr;
    llama_context * context = nullptr;
    Host host;
    bool aborts = false;
    int stops = 0, copies = 0; // of the graph; of queries, at each layer's attention
    std::vector<float> logits;
    std::vector<std::vector<float>> queries{LAYERS}; // [layer][tokens of all decodes][heads][dim]
    struct Copied {
        int layer;
        ggml_tensor tensor; // as it was: llama.cpp may use its memory for another graph
    };
    std::vector<Copied> copied; // of the ubatch: where the graph leaves them
    std::array<bool, LAYERS> taken{};

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
        p.ggml = s.far ? far_entries() : ggml_entries();
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
        if (ask && node->op == GGML_OP_SET_ROWS && std::strcmp(node->view_src->name, "cache_k_l0") == 0) {
            take_copied(); // before another ubatch
            taken = {};
        }
        const bool ours = kvmerge_eval_callback(node, ask, handle());
        const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT, softmax = node->op == GGML_OP_SOFT_MAX;
        const bool scores = std::strncmp(node->name, "kq-", 3) == 0;
        if (flash || softmax || (scores && !ask)) {
            const ggml_tensor * const product = softmax ? node->src[0] : node;
            const ggml_tensor * keys = flash ? node->src[1] : product->src[0];
            const ggml_tensor * const q = flash ? node->src[0]->src[0] : product->src[1]->src[0];
            for (; keys->op == GGML_OP_CPY; keys = keys->src[0]) {
            }
            const ggml_tensor * const from = ask ? q : q->src[0];
            const Copied here = {std::atoi(keys->view_src->name + std::strlen("cache_k_l")), *from};
            if (!ask && !taken[size_t(here.layer)]) { // of several stops at a layer, the first
                take(here);
                taken[size_t(here.layer)] = true;
            } else if (ask && q->op == GGML_OP_CPY) {
                copies++;
                copied.push_back(here);
            }
        }
        if (!ask) {
            return ours && host.goes_on(node);
        }
        stops += ours;
        return ours || host.asks(node);
    }
    void take(const Copied & c) {
        std::vector<float> & to = queries[size_t(c.layer)];
        const size_t n = size_t(c.tensor.ne[0] * c.tensor.ne[1] * c.tensor.ne[2] * c.tensor.ne[3]), before = to.size();
        to.resize(before + n);
        llama.ggml_backend_tensor_get(&c.tensor, to.data() + before, 0, n * sizeof(float));
    }
    void take_copied() {
        std::for_each(copied.begin(), copied.end(), [&](const Copied & c) { take(c); });
        copied.clear();
    }
    kvmerge_observer * freed = nullptr;
    kvmerge_observer * handle() const { return observer ? observer : freed; }

    void begin() { ok(kvmerge_observer_begin(observer)); }
    int decode(std::vector<llama_token> tokens, int from, int to) {
        const int status = llama.llama_decode(context, llama.llama_batch_get_one(tokens.data() + from, to - from));
        llama.llama_synchronize(context);
        take_copied();
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
    // Tensor cores take queries in half precision, for keys in half precision. So does llama.cpp on the CPU without
    // flash attention.
    const bool halves = (ON_GPU || !s.flash) && s.type == GGML_TYPE_F16;
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
    for (int i = 0; (s.observe & KVMERGE_OBSERVE_QUERY_HEADS) && i < n_layer_seen * TinyGguf::HEADS; i++) {
        std::vector<float> mean_a(DIM), mean_b(DIM), second_a(DIM * DIM), second_b(DIM * DIM);
        const int layer = i / TinyGguf::HEADS, head = i % TinyGguf::HEADS;
        ok(kvmerge_query_head_moments(run.observer, layer, head, mean_a.data(), second_a.data()));
        ok(kvmerge_query_head_moments(stopped.observer, layer, head, mean_b.data(), second_b.data()));
        for (size_t j = 0; j < size_t(DIM) * DIM; j++) {
            CHECK_NEAR(second_a[j], second_b[j], 1e-5, 1e-5);
            CHECK_NEAR(mean_a[j % DIM], mean_b[j % DIM], 1e-5, 1e-5);
        }
    }
    CHECK(run.logits == stopped.logits);
    CHECK(run.queries == stopped.queries && !run.queries[0].empty());
}

Settings stopping(Settings s) {
    s.observe = (s.observe & ~KVMERGE_OBSERVE_CAPTURE) | KVMERGE_OBSERVE_STOP;
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
    CHECK((run.stops == 0) == s.captures() && (run.copies > 0) == s.captures());
}

// A prompt in several ubatches, and in a block after it a generation token by token, whose graph llama.cpp uses again.
void test_blocks(llama_model * model, const Settings & s) {
    const std::vector<llama_token> tokens = random_tokens(120);
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
void test_counts(llama_model * model, bool far) {
    const std::vector<llama_token> tokens = random_tokens(60);
    for (const bool flash : {true, false}) {
        for (const int how : {0, int(KVMERGE_OBSERVE_CAPTURE), int(KVMERGE_OBSERVE_STOP)}) {
            Settings s{"counts"};
            s.flash = flash;
            s.far = far;
            s.observe = ATTENTION | how;
            Run run(model, s);
            CHECK(run.decode(tokens, 0, 40) == 0);
            run.stops = run.copies = 0;
            run.generate(tokens, 40, 60);
            const bool captured = s.captures() && how != KVMERGE_OBSERVE_STOP;
            CHECK(run.copies == (captured ? 20 * LAYERS : 0) && run.stops == (captured ? 0 : 20 * LAYERS));
            kvmerge_block_stats stats;
            ok(kvmerge_observer_stats(run.observer, &stats));
            CHECK(stats.n_layer_seen == LAYERS && stats.n_tokens == 60);
        }
    }
}

// What memory elsewhere is asked for in a block: of a token the cells that it comes to and those that it sees, and of
// each layer its queries and its keys, once.
void test_far_counts(llama_model * model) {
    const std::vector<llama_token> tokens = random_tokens(90);
    kvmerge_block_stats stats;
    for (const bool flash : {true, false}) {
        Settings s{"counts elsewhere"};
        s.flash = flash;
        s.far = true;
        {
            Run run(model, s);
            for (int block = 0; block < 2; block++) {
                run.begin();
                counts = {0, 0, 0, counts.buffers};
                run.generate(tokens, 40 * block, 40 + 40 * block);
                const int others = 40 * (1 + std::max(1, servers)); // each has a mask
                std::printf("  40 tokens: %d stops, brought %d queries, %d keys, %d others\n", run.stops,
                            counts.queries, counts.keys, counts.others);
                CHECK(run.stops == 0 && counts.queries == 0 && counts.keys == 0 && counts.others == others);
                ok(kvmerge_observer_stats(run.observer, &stats));
                CHECK(counts.queries == LAYERS && counts.keys == LAYERS && counts.others == others);
            }
            CHECK(counts.buffers == LAYERS);
        }
        CHECK(counts.buffers == 0);
    }
}

// A backend that has no room for all or some layers' queries: those are stopped for, to the same statistics.
void test_far_refused(llama_model * model) {
    const std::vector<llama_token> tokens = random_tokens(90);
    for (const bool flash : {true, false}) {
        for (room = 0; room < LAYERS; room++) {
            Settings s{"no room elsewhere"};
            s.flash = flash;
            s.far = true;
            const int layers = room;
            Run run(model, s), stopped(model, stopping(s));
            for (Run * r : {&run, &stopped}) {
                CHECK(r->decode(tokens, 0, 50) == 0);
                r->stops = r->copies = 0;
                r->generate(tokens, 50, 90);
            }
            CHECK(run.copies == 40 * layers && run.stops == 40 * (LAYERS - layers));
            same_statistics(run, stopped, s);
            room = layers;
        }
    }
    room = INT32_MAX;
}

// Of 60 queries in a block, 15 stand for four each: the third of every four. Their masses are told from blocks of one.
void test_sample(llama_model * model, Settings s) {
    const std::vector<llama_token> tokens = random_tokens(100);
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
        for (size_t i = 0; i < all; i++) {
            sum[i] += (t % 4 == 2 ? 4 : 0) * stats.mass[i];
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
    const std::vector<llama_token> tokens = random_tokens(120);
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
void test_changed_keys(llama_model * model, const Settings & s) {
    const std::vector<llama_token> tokens = random_tokens(60);
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
void test_hosts(llama_model * model, const Settings & s) {
    const std::vector<llama_token> tokens = random_tokens(60);
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
    const int graphs = s.flash ? 11 : 12; // the first stops at the scores too, until it is known where they lie
    CHECK(all.copies == 0 && all.stops == LAYERS * graphs && last.copies == LAYERS * 11 && last.stops == 0);
    same_statistics(all, stopped, s);
    same_statistics(last, stopped, s);

    midway.goes_on = [](const ggml_tensor * t) { return std::strcmp(t->name, "l_out-0") != 0; };
    Run ended(model, s, midway), ended_stopped(model, stopping(s), midway);
    for (Run * r : {&ended, &ended_stopped}) {
        r->decode(tokens, 0, 30);
        r->logits.clear(); // nothing that anybody computed
    }
    same_statistics(ended, ended_stopped, s, servers > 1 ? LAYERS : 1); // it ends what a device computes, not the rest
}

// A decode that is aborted: queries that never came are an error, and only of that block.
void test_abort(llama_model * model, const Settings & s) {
    const std::vector<llama_token> tokens = random_tokens(60);
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
void test_free(llama_model * model, const Settings & s) {
    const std::vector<llama_token> tokens = random_tokens(60);
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
    llama_model * const model = tiny_model_for(argc, argv, TinyGguf::LAYERS, !ON_GPU);
    servers = argc - 2;
    constexpr int QUERIES = KVMERGE_OBSERVE_QUERIES, MASS = KVMERGE_OBSERVE_MASS, CAPTURE = KVMERGE_OBSERVE_CAPTURE,
                  HEADS = QUERIES | KVMERGE_OBSERVE_QUERY_HEADS;
    const Settings settings[] = {{"F16"},
                                 {"small ubatches", true, GGML_TYPE_F16, 16},
                                 {"F32", true, GGML_TYPE_F32, 32},
                                 {"Q8_0, power 1.5", true, GGML_TYPE_Q8_0, 64, ATTENTION, 0, 1.5f},
                                 {"Q5_1", true, GGML_TYPE_Q5_1, 64, ATTENTION},
                                 {"the last 8", true, GGML_TYPE_F16, 64, ATTENTION, 8},
                                 {"the last 8 of small ubatches", true, GGML_TYPE_F16, 16, MASS, 8},
                                 {"entropy of a window", true, GGML_TYPE_F16, 16, ATTENTION | QUERIES, 20},
                                 {"moments alone", true, GGML_TYPE_F16, 16, QUERIES},
                                 {"moments by head", true, GGML_TYPE_F16, 16, HEADS},
                                 {"moments by head, Q8_0", true, GGML_TYPE_Q8_0, 64, HEADS | ATTENTION},
                                 {"no flash attention, moments by head", false, GGML_TYPE_F16, 16, HEADS | CAPTURE},
                                 {"no flash attention, stopped", false, GGML_TYPE_F16, 16},
                                 {"no flash attention", false, GGML_TYPE_F16, 16, ATTENTION | QUERIES | CAPTURE},
                                 {"no flash attention, F32", false, GGML_TYPE_F32, 64, ATTENTION | QUERIES | CAPTURE},
                                 {"no flash attention, the last 8", false, GGML_TYPE_F32, 64, MASS | CAPTURE, 8, 1.5f},
                                 {"no flash attention, moments alone", false, GGML_TYPE_F16, 16, QUERIES | CAPTURE}};
    for (const bool far : {false, true}) {
        if (far ? ON_GPU : servers > 0) {
            continue;
        }
        for (Settings s : settings) {
            if (ON_GPU && !s.flash && s.observe != (ATTENTION | QUERIES | CAPTURE)) {
                continue; // the shim is slow, and the rest is as with flash attention there
            }
            if (ON_GPU && !far && (s.observe & KVMERGE_OBSERVE_QUERY_HEADS)) {
                continue; // which are the CPU's
            }
            s.far = far;
            std::printf("%s%s\n", s.name, far ? ", elsewhere" : "");
            test_blocks(model, s);
        }
        test_counts(model, far);
        for (const bool flash : {true, false}) {
            if (ON_GPU && !flash) {
                continue;
            }
            Settings s{"one of each"};
            s.far = far;
            s.flash = flash;
            s.observe |= flash ? 0 : CAPTURE;
            test_changed_keys(model, s);
            test_hosts(model, s);
            if (servers == 0) { // they are not told to abort
                test_abort(model, s);
            }
            test_free(model, s);
            s.observe = flash ? MASS : MASS | CAPTURE;
            test_sample(model, s);
        }
    }
#ifdef KVMERGE_ON_SHIM
    test_gpu_counts(model);
#endif
    if (!ON_GPU) {
        test_far_counts(model);
        test_far_refused(model);
    }
    llama.llama_model_free(model);
    std::printf("ok\n");
}
