// What kvmerge.h promises of wrong calls: an error that says what is wrong, and nothing written.
#include "check.hpp"
#include "fake_graph.hpp"
#include "kvmerge.h"

#include <atomic>
#include <climits>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <thread>

static bool says(const char * what) {
    return std::strstr(kvmerge_last_error(), what) != nullptr;
}

// Every function on an observer, and its callback, with a handle that is none.
static void refuse_everything(kvmerge_observer * o) {
    Fixture f;
    kvmerge_block_stats stats;
    kvmerge_cache_info info;
    kvmerge_key_rotation rotation;
    float x[64] = {};
    const int32_t cell = 0;
    int32_t group;
    const double rate = 1;
    const kvmerge_groups_params groups = {1, 4, 4, 0, 1, 0, 1, 1, nullptr, nullptr, &rate};
    CHECK(kvmerge_observer_begin(o) == KVMERGE_E_ARGUMENT);
    CHECK(says("this is no observer, or one that was freed"));
    CHECK(kvmerge_observer_forget(o) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_cache_info(o, &info) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_query_moments(o, 0, 0, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_query_head_moments(o, 0, 0, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_rotation(o, 0, &rotation, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_read_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_write_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_project_cells(o, 0, 0, &cell, &cell, 1, x, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_plan_cells(o, 0, 0, &cell, &groups, &group, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(MoveArrays().apply(o) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_free(o) == KVMERGE_E_ARGUMENT);
    f.decode(o);
    CHECK(f.stops == 0);
}

static void test_handles() {
    const auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE);
    kvmerge_observer * freed = make(params);
    CHECK(kvmerge_observer_free(freed) == KVMERGE_OK);
    refuse_everything(freed);
    for (int i = 0; i < 5000; i++) { // more than there are places: none of them answers to the old handle
        kvmerge_observer * next = make(params);
        CHECK(next != freed);
        CHECK(kvmerge_observer_begin(freed) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_observer_free(next) == KVMERGE_OK);
    }
    refuse_everything(nullptr);
    char foreign[64] = {};
    refuse_everything(reinterpret_cast<kvmerge_observer *>(foreign));
    for (const uint64_t value : {uint64_t(1), uint64_t(2), uint64_t(3), uint64_t(0xffff), ~uint64_t(0), uint64_t(8)}) {
        refuse_everything(reinterpret_cast<kvmerge_observer *>(value)); // where nothing lies
    }
    kvmerge_log * log = nullptr;
    CHECK(kvmerge_log_create(false, &log) == KVMERGE_OK);
    refuse_everything(reinterpret_cast<kvmerge_observer *>(log));
    kvmerge_observer * o = make(params);
    char text[8];
    CHECK(kvmerge_log_take(reinterpret_cast<kvmerge_log *>(o), text, sizeof text) == KVMERGE_E_ARGUMENT);
    CHECK(says("this is no log"));
    kvmerge_log_callback(4, "lost", o);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    CHECK(kvmerge_log_free(log) == KVMERGE_OK);
    CHECK(kvmerge_log_free(log) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_log_take(log, text, sizeof text) == KVMERGE_E_ARGUMENT);
    kvmerge_log_callback(4, "lost", log);

    std::vector<kvmerge_observer *> all; // as many as there is room for, and then an error
    kvmerge_status status;
    while ((status = kvmerge_observer_create(&params, &o)) == KVMERGE_OK) {
        all.push_back(o);
    }
    CHECK(status == KVMERGE_E_MEMORY && says("free some") && all.size() == 4096);
    for (kvmerge_observer * one : all) {
        CHECK(kvmerge_observer_free(one) == KVMERGE_OK);
    }
}

// A call from inside a call, as from another thread while one is inside.
static kvmerge_observer * inside = nullptr;
static kvmerge_status from_inside[3];
static void call_from_inside(const ggml_tensor * t, void * data, size_t offset, size_t size) {
    kvmerge_block_stats stats;
    from_inside[0] = kvmerge_observer_stats(inside, &stats);
    from_inside[1] = kvmerge_observer_free(inside);
    float x[Fixture::DIM];
    const int32_t cell = 0;
    from_inside[2] = kvmerge_read_cells(inside, 0, 0, &cell, 1, x, x);
    tensor_get(t, data, offset, size);
}

static void test_one_thread_at_a_time() {
    Fixture f;
    auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE);
    params.ggml.tensor_get = call_from_inside;
    inside = make(params);
    f.decode(inside);
    for (const kvmerge_status status : from_inside) {
        CHECK(status == KVMERGE_E_STATE);
    }
    kvmerge_block_stats stats;
    CHECK(kvmerge_observer_stats(inside, &stats) == KVMERGE_OK && stats.n_tokens == 3);
    CHECK(kvmerge_observer_free(inside) == KVMERGE_OK);
}

// Threads that plan different heads read cells and moments at once, and none is sent away.
static void test_reading_at_once() {
    Fixture f;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE));
    for (int block = 0; block < 20; block++) {
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        f.decode(o);
        std::vector<std::thread> threads;
        for (int thread = 0; thread < 4; thread++) {
            threads.emplace_back([&, thread] {
                for (int i = 0; i < 100; i++) {
                    const int32_t cell = 0;
                    float x[Fixture::DIM * Fixture::DIM], y[Fixture::DIM * Fixture::DIM];
                    CHECK(kvmerge_read_cells(o, 0, 0, &cell, 1, x, y) == KVMERGE_OK);
                    CHECK((thread % 2 == 0 ? kvmerge_query_moments(o, 0, 0, x, y)
                                           : kvmerge_query_head_moments(o, 0, 1, x, y)) == KVMERGE_OK);
                }
            });
        }
        for (std::thread & thread : threads) {
            thread.join();
        }
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Threads that decode, read, plan, ask and free at once: whatever each call answers, nothing crashes.
static void test_many_threads() {
    const auto params = params_for(KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE);
    kvmerge_log * log = nullptr;
    CHECK(kvmerge_log_create(false, &log) == KVMERGE_OK);
    std::atomic<kvmerge_observer *> shared{make(params)};
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    const auto start = [&](auto call) {
        threads.emplace_back([&, call] {
            while (!done) {
                call(shared.load());
            }
        });
    };
    Fixture f;
    f.decode(shared);
    start([&](kvmerge_observer * o) {
        const int32_t cells[] = {0, 1};
        float x[2 * Fixture::DIM];
        kvmerge_read_cells(o, 0, 0, cells, 2, x, x);
        float second[Fixture::DIM * Fixture::DIM];
        kvmerge_query_moments(o, 0, 0, x, second);
        kvmerge_query_head_moments(o, 0, 1, x, second);
    });
    start([&](kvmerge_observer * o) {
        const int32_t cells[] = {0, 1, 2};
        const double rate[] = {1, 2, 3};
        int32_t group[3];
        const kvmerge_groups_params p = {3, 0, 0, 0, 3, 1, 8, 1, nullptr, nullptr, rate};
        kvmerge_plan_cells(o, 0, 0, cells, &p, group, nullptr);
    });
    start([&](kvmerge_observer * o) {
        kvmerge_block_stats stats;
        kvmerge_cache_info info;
        kvmerge_observer_stats(o, &stats);
        kvmerge_observer_cache_info(o, &info);
        kvmerge_log_callback(4, "line\n", log);
    });
    start([&](kvmerge_observer *) {
        char text[100];
        CHECK(kvmerge_log_take(log, text, sizeof text) == KVMERGE_OK);
    });
    for (int round = 0; round < 2000; round++) {
        kvmerge_observer * const old = shared;
        kvmerge_observer_begin(old);
        f.decode(old);
        kvmerge_observer * next = nullptr;
        CHECK(kvmerge_observer_create(&params, &next) == KVMERGE_OK);
        shared = next;
        kvmerge_status status;
        while ((status = kvmerge_observer_free(old)) == KVMERGE_E_STATE) { // somebody is inside
            std::this_thread::yield();
        }
        CHECK(status == KVMERGE_OK);
    }
    done = true;
    for (std::thread & thread : threads) {
        thread.join();
    }
    CHECK(kvmerge_observer_free(shared) == KVMERGE_OK);
    while (kvmerge_log_free(log) != KVMERGE_OK) {
    }
}

static ggml_tensor * hidden_write = nullptr; // handed to the callback while a thread is inside

// What the callback could not note, because another thread was inside, is an error of the block.
static void test_missed_nodes() {
    Fixture f;
    auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE);
    static Fixture * other;
    other = &f;
    params.ggml.tensor_get = [](const ggml_tensor * t, void * data, size_t offset, size_t size) {
        kvmerge_eval_callback(&other->soft_max, true, inside); // while the first is inside
        tensor_get(t, data, offset, size);
    };
    inside = make(params);
    f.decode(inside);
    kvmerge_block_stats stats;
    CHECK(kvmerge_observer_stats(inside, &stats) == KVMERGE_E_STATE && says("while llama.cpp decoded"));
    CHECK(kvmerge_observer_begin(inside) == KVMERGE_OK);
    CHECK(kvmerge_observer_stats(inside, &stats) == KVMERGE_OK);
    CHECK(kvmerge_observer_free(inside) == KVMERGE_OK);
}

// llama.cpp decodes on after an error, or while a callback could not enter. What was known of its cells before counts
// no more, and a cell that is written after it brings none of the others back.
static void test_unseen_writes() {
    on_host = false;
    for (const bool missed : {false, true}) {
        Fixture f;
        auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE);
        params.n_tokens = Fixture::TOKENS;
        params.ggml.buffer_is_host = [](ggml_backend_buffer_t) { // while the first is inside
            static bool deep = false;
            if (!deep && inside) {
                deep = true;
                kvmerge_eval_callback(hidden_write, true, inside);
                deep = false;
            }
            return on_host;
        };
        hidden_write = &f.k_write;
        inside = nullptr;
        kvmerge_observer * o = make(params);
        f.decode(o);
        const int32_t cells[] = {6, 7}, first = 0;
        float keys[2 * Fixture::DIM], values[2 * Fixture::DIM];
        const double rate[] = {1, 1};
        int32_t group[2];
        double cost, expected;
        kvmerge_groups_params p = {2, Fixture::DIM, Fixture::DIM, 0, 2, 0, 8, 1e-6, keys, values, rate};
        CHECK(kvmerge_plan_cells(o, 0, 0, cells, &p, group, &cost) == KVMERGE_OK); // and now their distance is known
        if (missed) {
            CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
            inside = o;
            kvmerge_eval_callback(&f.soft_max, true, o);
            kvmerge_eval_callback(&f.soft_max, false, o);
            inside = nullptr;
        } else {
            f.decode(o); // more tokens than the block has room for
            CHECK(kvmerge_read_cells(o, 0, 0, cells, 2, keys, values) == KVMERGE_OK);
        }
        for (float & x : f.k) {
            x *= 3;
        }
        for (float & x : f.v) {
            x *= 3;
        }
        if (!missed) {
            f.decode(o);
        }
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == (missed ? KVMERGE_E_STATE : KVMERGE_E_ARGUMENT));
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        CHECK(kvmerge_read_cells(o, 0, 0, cells, 2, keys, values) == KVMERGE_OK);
        for (int i = 0; i < 2 * Fixture::DIM; i++) {
            CHECK(keys[i] == f.k[6 * Fixture::DIM + size_t(i)]);
            CHECK(values[i] == f.v[size_t(i % Fixture::DIM) * Fixture::CELLS + size_t(6 + i / Fixture::DIM)]);
        }
        p.operations = 1;
        CHECK(kvmerge_plan_cells(o, 0, 0, cells, &p, group, &cost) == KVMERGE_OK);
        CHECK(kvmerge_plan_groups(&p, group, &expected) == KVMERGE_OK && group[1] == 0);
        CHECK_NEAR(cost, expected, 0, 1e-5);
        auto k = f.k;
        CHECK(kvmerge_write_cells(o, 0, 0, &first, 1, keys, values) == KVMERGE_OK);
        std::copy(keys, keys + Fixture::DIM, k.begin());
        CHECK(f.k == k);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    on_host = true;
}

// A host's own callback asks for other nodes, and hands all of them on.
static void test_foreign_nodes() {
    const int32_t layers[] = {3};
    auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_FOLDED);
    for (const bool some : {false, true}) {
        params.layers = some ? layers : nullptr;
        Fixture f(true, some ? "3" : "0"), foreign(true, some ? "0" : "1");
        kvmerge_observer * o = make(params);
        f.decode(o);
        Tensor plain(GGML_TYPE_F32, GGML_OP_ADD, "ffn_out-0", 4, 3, 1, nullptr);
        Tensor odd(GGML_TYPE_F32, GGML_OP_SOFT_MAX, "no layer's", 4, 3, 1, nullptr);
        for (ggml_tensor * node : {(ggml_tensor *)&plain, (ggml_tensor *)&odd, (ggml_tensor *)&foreign.kq,
                                   (ggml_tensor *)&foreign.soft_max, (ggml_tensor *)&f.soft_max}) {
            CHECK(kvmerge_eval_callback(node, false, o)); // nobody asked for it
        }
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK);
        CHECK(stats.n_layer_seen == 1 && stats.n_tokens == 3);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// The largest sizes cost nothing before there is a context, and one that is smaller is refused by name.
static void test_sizes() {
    kvmerge_observer * o = nullptr;
    auto params = params_for(KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY, KVMERGE_BIAS_EXACT);
    params.n_cells = params.n_tokens = INT_MAX;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_OK);
    kvmerge_block_stats stats;
    CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK && stats.n_tokens == 0 && !stats.mass && !stats.entropy);
    Fixture f;
    f.decode(o);
    CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_UNSUPPORTED && says("make it for llama_n_ctx_seq"));
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    params.n_layer = 65536;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT && says("2^40"));
    params.n_cells = 8;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT && says("2^40"));
    params = params_for(0, 0);
    params.n_head = params.n_head_kv = INT_MAX;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
    params = params_for(0, KVMERGE_BIAS_FOLDED);
    params.query_decay = NAN;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
    params = params_for(0, KVMERGE_BIAS_FOLDED);
    params.ridge = INFINITY;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
}

// An observer belongs to one context: another's cache, even at the same address, is an error for good, and its cells
// left alone.
static void test_another_context() {
    for (const bool same_address : {false, true}) {
        Fixture f;
        kvmerge_observer * o = make(params_for(0, KVMERGE_BIAS_NONE));
        f.decode(o);
        Fixture g;
        std::vector<float> smaller(Fixture::DIM * 4);
        Tensor & cache = same_address ? f.cache_k : g.cache_k;
        cache.ne[1] = 4;
        cache.data = smaller.data();
        (same_address ? f : g).decode(o);
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_STATE && says("another llama_context"));
        const auto k = f.k;
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_STATE && says("another llama_context"));
        kvmerge_cache_info info;
        CHECK(kvmerge_observer_cache_info(o, &info) == KVMERGE_E_STATE && says("another llama_context"));
        CHECK(MoveArrays().apply(o) == KVMERGE_E_STATE && says("another llama_context"));
        const int32_t cell = 7;
        float x[Fixture::DIM] = {};
        CHECK(kvmerge_read_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_STATE);
        CHECK(kvmerge_write_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_STATE);
        CHECK(f.k == k);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// Decodes, and expects the block's error.
static void refused(Fixture & f, const kvmerge_observer_params & params, kvmerge_status status, const char * why) {
    kvmerge_observer * o = make(params);
    f.decode(o);
    kvmerge_block_stats stats;
    if (kvmerge_observer_stats(o, &stats) != status || !says(why)) {
        std::printf("expected '%s', got '%s'\n", why, kvmerge_last_error());
        std::exit(1);
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// What the fuzzer has found of graphs that are not as llama.cpp makes them (native/fuzz).
static void test_odd_graphs() {
    const auto params = params_for(KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY, KVMERGE_BIAS_NONE);
    for (const int64_t n : {int64_t(-1), int64_t(0), int64_t(1) << 40}) {
        Fixture f, g;
        f.cache_k.ne[0] = n;
        refused(f, params, KVMERGE_E_UNSUPPORTED, "layer 0: a cache of");
        g.cache_k.ne[1] = n;
        refused(g, params, KVMERGE_E_UNSUPPORTED, "layer 0: a cache of");
    }
    {
        Fixture f;
        f.cache_v.ne[1] = 4;
        refused(f, params, KVMERGE_E_UNSUPPORTED, "for keys and values");
    }
    {
        Fixture f;
        f.index.ne[0] = 0;
        refused(f, params, KVMERGE_E_ARGUMENT, "a batch without tokens");
    }
    { // a cell that the arrays have room for, and the cache has not
        Fixture f;
        auto larger = params;
        larger.n_cells = Fixture::CELLS + 200;
        f.rows[2] = Fixture::CELLS;
        refused(f, larger, KVMERGE_E_ARGUMENT, "a token was written to a cell outside the cache");
    }
    for (const int wrong : {0, 1, 2}) {
        Fixture f;
        Tensor mask(GGML_TYPE_F32, GGML_OP_ADD, "mask", Fixture::CELLS, Fixture::TOKENS, 1, f.p.data());
        f.soft_max.src[1] = &mask;
        wrong == 0 ? void(mask.ne[0] = 2) : wrong == 1 ? void(mask.ne[1] = 1) : void(mask.type = GGML_TYPE_I32);
        refused(f, params, KVMERGE_E_UNSUPPORTED, "mask mask has an unexpected type or shape");
    }
    {
        Fixture f;
        f.soft_max.ne[1] = 17; // rows of entropies, and there are places for 16 tokens
        refused(f, params, KVMERGE_E_UNSUPPORTED, "attention of an unexpected type or shape");
    }
    for (const int wrong : {0, 1}) { // rotations that are none
        Fixture f;
        Tensor rope(GGML_TYPE_F32, GGML_OP_ROPE, "Kcur", Fixture::DIM, Fixture::TOKENS, 1, f.k.data());
        rope.src[0] = &f.plain_key;
        rope.op_params[1] = 4;
        rope.op_params[15] = wrong == 0 ? INT_MAX : 0;
        const float numbers[] = {wrong == 1 ? NAN : 10000, 1, 0, 1, 32, 1};
        std::memcpy(&rope.op_params[5], numbers, sizeof numbers);
        f.k_write.src[0] = &rope;
        refused(f, params, KVMERGE_E_UNSUPPORTED, wrong == 0 ? "is not handled" : "not finite");
    }
    { // scores of more cells than there are biases
        Fixture f;
        kvmerge_observer * o = make(params_for(0, KVMERGE_BIAS_EXACT));
        f.decode(o);
        MoveArrays moves;
        moves.target[1] = 0;
        moves.weight[0] = moves.weight[1] = 0.5f;
        CHECK(moves.apply(o) == KVMERGE_OK);
        f.kq.ne[0] = Fixture::CELLS + 1;
        f.decode(o);
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_UNSUPPORTED && says("scores of an unexpected"));
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    on_host = false;
    { // what was seen of a cache out of reach is what is brought here
        Fixture f;
        kvmerge_observer * o = make(params);
        f.decode(o);
        f.cache_k.nb[2] = 16;
        const int32_t cells[] = {0, 7};
        float x[2 * Fixture::DIM];
        CHECK(kvmerge_read_cells(o, 0, 0, cells, 2, x, nullptr) == KVMERGE_OK);
        CHECK(x[Fixture::DIM] == f.k[7 * Fixture::DIM]);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    on_host = true;
}

static void test_cells() {
    Fixture f;
    kvmerge_observer * o = make(params_for(0, KVMERGE_BIAS_NONE));
    f.decode(o);
    std::vector<int32_t> cells(9, 0);
    std::vector<float> x(9 * Fixture::DIM), weight(Fixture::DIM, 1.0f);
    const auto k = f.k, v = f.v;
    for (const int32_t n : {9, INT_MAX, -1, INT_MIN}) { // what is counted is not looked at
        CHECK(kvmerge_read_cells(o, 0, 0, cells.data(), n, x.data(), x.data()) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_write_cells(o, 0, 0, cells.data(), n, x.data(), x.data()) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_project_cells(o, 0, 0, cells.data(), cells.data(), n, weight.data(), x.data(), x.data()) ==
              KVMERGE_E_ARGUMENT);
        const double rate = 1;
        const kvmerge_groups_params p = {n, 0, 0, 0, 1, 0, 8, 1, nullptr, nullptr, &rate};
        CHECK(kvmerge_plan_cells(o, 0, 0, cells.data(), &p, cells.data(), nullptr) == KVMERGE_E_ARGUMENT);
    }
    CHECK(kvmerge_read_cells(o, 0, 0, cells.data(), 8, x.data(), x.data()) == KVMERGE_OK); // one may be read twice
    CHECK(kvmerge_write_cells(o, 0, 0, cells.data(), 2, x.data(), x.data()) == KVMERGE_E_ARGUMENT && says("twice"));
    const double rate[] = {1, 1};
    const kvmerge_groups_params p = {2, 0, 0, 0, 2, 1, 8, 1, nullptr, nullptr, rate};
    CHECK(kvmerge_plan_cells(o, 0, 0, cells.data(), &p, cells.data(), nullptr) == KVMERGE_E_ARGUMENT && says("twice"));
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        x[1] = bad;
        CHECK(kvmerge_write_cells(o, 0, 0, cells.data(), 1, x.data(), nullptr) == KVMERGE_E_NUMERIC);
        CHECK(kvmerge_write_cells(o, 0, 0, cells.data(), 1, nullptr, x.data()) == KVMERGE_E_NUMERIC);
        weight[1] = bad;
        CHECK(kvmerge_project_cells(o, 0, 0, cells.data(), cells.data(), 1, weight.data(), x.data(), x.data()) ==
              KVMERGE_E_NUMERIC);
    }
    CHECK(f.k == k && f.v == v);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

static void test_plans() {
    Fixture f;
    kvmerge_observer * o = make(params_for(0, KVMERGE_BIAS_NONE));
    f.decode(o);
    const auto k = f.k, v = f.v;
    std::vector<int32_t> moved(Fixture::CELLS, 0);
    MoveArrays a;
    kvmerge_moves moves = {a.target.data(), a.weight.data(), nullptr, a.position.data(),
                           a.dest.data(),   moved.data(),    1};
    a.position[1] = INT_MIN;
    moved[1] = INT_MAX;
    CHECK(kvmerge_apply(o, &moves) == KVMERGE_E_ARGUMENT && says("cell 1") && says("2^31 - 1 away"));
    a.target[1] = 0; // into the pivot's frame
    a.weight[0] = a.weight[1] = 0.5f;
    CHECK(kvmerge_apply(o, &moves) == KVMERGE_E_ARGUMENT && says("cell 1"));
    CHECK(f.k == k && f.v == v);
    moved[0] = -INT_MAX; // to the pivot is too far, and to where that goes is not
    CHECK(kvmerge_apply(o, &moves) == KVMERGE_OK);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// A bias is folded along queries; ones with NaN would spread over the cells.
static void test_bad_queries() {
    Fixture f;
    f.q[5] = NAN;
    kvmerge_observer * o = make(params_for(0, KVMERGE_BIAS_FOLDED));
    f.decode(o);
    const auto k = f.k;
    MoveArrays moves;
    moves.target[1] = 0;
    moves.weight[0] = moves.weight[1] = 0.5f;
    CHECK(moves.apply(o) == KVMERGE_E_NUMERIC && says("queries"));
    CHECK(f.k == k);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Cells that a backend could not take are not as anybody left them: later calls say so.
static void test_failure_midway() {
    on_host = false;
    {
        Fixture f;
        auto params = params_for(0, KVMERGE_BIAS_NONE);
        params.ggml.tensor_set = [](ggml_tensor *, const void *, size_t, size_t) { throw 1; };
        static bool no_memory;
        params.ggml.tensor_get = [](const ggml_tensor * t, void * data, size_t offset, size_t size) {
            if (no_memory) {
                throw std::bad_alloc();
            }
            tensor_get(t, data, offset, size);
        };
        kvmerge_observer * o = make(params);
        f.decode(o);
        const int32_t cell = 0;
        float x[Fixture::DIM] = {};
        no_memory = true; // before anything is written
        CHECK(kvmerge_write_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_MEMORY);
        no_memory = false;
        CHECK(kvmerge_read_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_OK);
        CHECK(kvmerge_write_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_STATE);
        CHECK(kvmerge_read_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_STATE && says("make the context anew"));
        CHECK(MoveArrays().apply(o) == KVMERGE_E_STATE && says("make the context anew"));
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    on_host = true;
}

static void test_planning() {
    const float vectors[4] = {1, 2, 3, 4};
    const double rates[4] = {1, 1, 1, 1};
    int32_t group[4] = {7, 7, 7, 7};
    const kvmerge_groups_params fine = {4, 1, 1, 0, 3, 2, 8, 1.0, vectors, vectors, rates};
    for (const int32_t bad : {0, -1, INT_MIN, INT_MAX, (1 << 27) + 1}) {
        auto p = fine;
        p.n = bad;
        CHECK(kvmerge_plan_groups(&p, group, nullptr) == KVMERGE_E_ARGUMENT);
        p = fine, p.head_dim_k = bad;
        CHECK(kvmerge_plan_groups(&p, group, nullptr) == KVMERGE_E_ARGUMENT);
        p = fine, p.head_dim_v = bad;
        CHECK(kvmerge_plan_groups(&p, group, nullptr) == KVMERGE_E_ARGUMENT);
    }
    auto p = fine;
    p.key_cost = INFINITY;
    CHECK(kvmerge_plan_groups(&p, group, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(group[0] == 7);

    float prior[2] = {0, 0}, w[4] = {1, 1, 1, 1};
    const int32_t position[2] = {3, 5};
    double expected[2] = {7, 7};
    const auto expect = [&](int32_t n, double least) {
        return kvmerge_expected_attention(n, rates, prior, position, 6, least, w, expected);
    };
    CHECK(expect((1 << 27) + 1, 1e-6) == KVMERGE_E_ARGUMENT);
    CHECK(expect(2, INFINITY) == KVMERGE_E_ARGUMENT && expect(2, NAN) == KVMERGE_E_ARGUMENT);
    prior[1] = NAN;
    CHECK(expect(2, 1e-6) == KVMERGE_E_NUMERIC);
    prior[1] = 0, w[3] = INFINITY;
    CHECK(expect(2, 1e-6) == KVMERGE_E_NUMERIC);
    CHECK(expected[0] == 7 && expected[1] == 7);
    w[2] = 3e38f, w[3] = -3e38f, w[0] = -3e38f; // finite, and infinity - infinity when added up, as the CPU does it
    CHECK(expect(2, 1e30) == KVMERGE_E_NUMERIC || !std::isnan(expected[0] + expected[1]));
}

static void test_scoring() {
    const float x[2] = {0, 1};
    const int32_t target = 1;
    double out = 42;
    uint8_t same;
    alignas(4) char packed[16];
    for (const int64_t rows : {int64_t(1) << 40, INT64_MAX, INT64_MIN}) { // their product overflows
        CHECK(kvmerge_score(x, rows, 2, &target, 1, &out) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_pack_log_probs(x, rows, 2, 1, packed) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_kl_divergence(packed, x, rows, 2, 1, &out, &same) == KVMERGE_E_ARGUMENT);
        float entropy;
        int32_t span;
        CHECK(kvmerge_row_entropy(x, rows, 2, &entropy) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_find_spans(x, rows, 2, 0, 2, .5f, 3, &span) == KVMERGE_E_ARGUMENT);
    }
    for (const float bad : {NAN, INFINITY, -1.0f, 1e30f, 1e3f}) { // scales that no packing gives
        CHECK(kvmerge_pack_log_probs(x, 1, 2, 1, packed) == KVMERGE_OK);
        CHECK(kvmerge_kl_divergence(packed, x, 1, 2, 1, &out, &same) == KVMERGE_OK);
        std::memcpy(packed, &bad, 4);
        CHECK(kvmerge_kl_divergence(packed, x, 1, 2, 1, &out, &same) == KVMERGE_E_NUMERIC && says("packed row 0"));
    }
    for (const float bad : {NAN, INFINITY, -INFINITY, 100.0f, -1e30f}) { // likewise the least log probability
        CHECK(kvmerge_pack_log_probs(x, 1, 2, 1, packed) == KVMERGE_OK);
        std::memcpy(packed + 4, &bad, 4);
        CHECK(kvmerge_kl_divergence(packed, x, 1, 2, 1, &out, &same) == KVMERGE_E_NUMERIC && says("packed row 0"));
    }
    const float wide[2] = {-3e38f, 3e38f}, close[2] = {1, 1 + 1e-7f};
    CHECK(kvmerge_pack_log_probs(wide, 1, 2, 1, packed) == KVMERGE_E_NUMERIC);
    CHECK(kvmerge_pack_log_probs(close, 1, 2, 1, packed) == KVMERGE_OK);
    CHECK(kvmerge_kl_divergence(packed, close, 1, 2, 1, &out, &same) == KVMERGE_OK && std::fabs(out) < 1e-6);
    CHECK(kvmerge_pack_log_probs(x, 1, 2, 1, packed + 1) == KVMERGE_E_ARGUMENT && says("even address"));
    float entropy = 42;
    for (const float bad : {NAN, INFINITY, -0.5f}) {
        const float p[2] = {0.5f, bad};
        CHECK(kvmerge_row_entropy(p, 1, 2, &entropy) == KVMERGE_E_NUMERIC);
    }
    int32_t span[2] = {7, 7};
    CHECK(kvmerge_find_spans(x, 1, 2, 0, 2, NAN, 3, span) == KVMERGE_E_ARGUMENT && span[0] == 7);
}

static void test_log() {
    kvmerge_log * log = nullptr;
    CHECK(kvmerge_log_create(false, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_log_create(false, &log) == KVMERGE_OK);
    const std::string huge(1 << 20, 'x');
    kvmerge_log_callback(4, nullptr, log);
    kvmerge_log_callback(4, huge.c_str(), log);
    kvmerge_log_callback(5, "end", log);
    kvmerge_log_callback(INT_MIN, "info", log);
    char text[64] = "as before";
    CHECK(kvmerge_log_take(log, nullptr, 64) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_log_take(log, text, 0) == KVMERGE_E_ARGUMENT && std::string(text) == "as before");
    CHECK(kvmerge_log_take(log, text, 6) == KVMERGE_OK && std::string(text) == "xxend");
    CHECK(kvmerge_log_take(log, text, SIZE_MAX) == KVMERGE_OK && std::string(text).empty());
    CHECK(kvmerge_log_free(log) == KVMERGE_OK);
}

int main() {
    test_handles();
    test_one_thread_at_a_time();
    test_reading_at_once();
    test_many_threads();
    test_missed_nodes();
    test_unseen_writes();
    test_foreign_nodes();
    test_sizes();
    test_another_context();
    test_odd_graphs();
    test_cells();
    test_plans();
    test_bad_queries();
    test_failure_midway();
    test_planning();
    test_scoring();
    test_log();
    std::printf("ok\n");
}
