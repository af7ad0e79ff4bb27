// The observer and the merge on a graph made by hand.
#include "fake_graph.hpp"
#include "isa.hpp"
#include "observer.hpp"
#include "windows.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

// How many allocations more there is memory for; -1: for all.
static std::atomic<int> allocations_left{-1};

[[gnu::noinline]] void * operator new(size_t n) {
    if (allocations_left == 0) { // until somebody says that there is more
        throw std::bad_alloc();
    }
    if (allocations_left > 0) {
        allocations_left--;
    }
    void * const memory = std::malloc(n > 0 ? n : 1);
    if (!memory) {
        throw std::bad_alloc();
    }
    return memory;
}
[[gnu::noinline]] void operator delete(void * memory) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void * memory, size_t) noexcept {
    std::free(memory);
}

static void test_statistics() {
    Fixture f;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY, KVMERGE_BIAS_NONE));
    Tensor mask(GGML_TYPE_F32, GGML_OP_NONE, "mask", Fixture::CELLS, Fixture::TOKENS, 1, nullptr);
    std::vector<float> masked(Fixture::CELLS * Fixture::TOKENS, -INFINITY);
    for (int t = 0; t < Fixture::TOKENS; t++) {
        std::fill_n(masked.begin() + t * Fixture::CELLS, t + 1, 0.0f);
    }
    mask.data = masked.data();
    f.soft_max.src[1] = &mask;
    f.decode(o);
    kvmerge_block_stats s;
    CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_OK);
    CHECK(s.n_tokens == 3 && s.n_layer_seen == 1 && s.token_cell[2] == 2);
    const double expected[] = {2 * (1 + 0.5 + 1.0 / 3), 2 * (0.5 + 1.0 / 3), 2 * (1.0 / 3)};
    for (int c = 0; c < Fixture::CELLS; c++) {
        CHECK_NEAR(s.mass[c], c < 3 ? expected[c] : 0, 1e-6, 0);
    }
    for (int h = 0; h < Fixture::HEADS; h++) {
        CHECK_NEAR(s.entropy[h * 16 + 0], 0, 5e-6, 0); // sees one cell
        CHECK_NEAR(s.entropy[h * 16 + 1], 1, 5e-6, 0); // uniform over what it sees
        CHECK_NEAR(s.entropy[h * 16 + 2], 1, 5e-6, 0);
    }
    kvmerge_cache_info info;
    CHECK(kvmerge_observer_cache_info(o, &info) == KVMERGE_OK);
    CHECK(info.n_cells == 8 && info.head_dim_k == 4 && info.v_transposed == 1 && info.bytes == 2 * 4 * 4 * 8);
    CHECK(std::string(info.type_k) == "f32");
    CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
    CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_OK);
    CHECK(s.n_tokens == 0 && s.mass[0] == 0);
    f.p[0] = NAN;
    f.decode(o);
    CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_E_NUMERIC);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Cells behind the last one that any row sees are not looked at.
static void test_unseen_cells() {
    for (const int seen : {1, 3, 5, 8}) {
        Fixture f;
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
        std::vector<float> masked(Fixture::CELLS * Fixture::TOKENS, -INFINITY);
        masked[size_t(seen % Fixture::TOKENS) * Fixture::CELLS + seen - 1] = 0;
        f.rows = {0, 0, 0}; // the newest token sees those of its batch
        masked[2 * Fixture::CELLS] = 0;
        Tensor mask(GGML_TYPE_F32, GGML_OP_NONE, "mask", Fixture::CELLS, Fixture::TOKENS, 1, masked.data());
        f.soft_max.src[1] = &mask;
        std::fill(f.p.begin(), f.p.end(), 1.0f);
        f.decode(o);
        kvmerge_block_stats s;
        CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_OK);
        for (int c = 0; c < Fixture::CELLS; c++) { // of a mask out of reach nothing is known
            CHECK(s.mass[c] == (c < seen || !on_host ? Fixture::TOKENS * Fixture::HEADS : 0));
        }
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// The moments of a large ubatch are those of tokens at even distances.
static void test_many_queries() {
    constexpr int N = 200, STEP = 3;
    Fixture f;
    Random random(5);
    std::vector<float> q = random.normals(size_t(N) * Fixture::HEADS * Fixture::DIM);
    Tensor many(GGML_TYPE_F32, GGML_OP_PERMUTE, "q", Fixture::DIM, N, Fixture::HEADS, q.data());
    f.kq.src[1] = &many;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_QUERIES, KVMERGE_BIAS_NONE));
    f.decode(o);
    float mean[Fixture::DIM], second[Fixture::DIM * Fixture::DIM];
    CHECK(kvmerge_query_moments(o, 0, 0, mean, second) == KVMERGE_OK);
    for (int i = 0; i < Fixture::DIM; i++) {
        for (int j = 0; j < Fixture::DIM; j++) {
            double sum = 0, product = 0;
            int n = 0;
            for (int r = 0; r < N * Fixture::HEADS; r++) {
                if (r % N % STEP == 0) {
                    sum += q[size_t(r) * Fixture::DIM + i];
                    product += double(q[size_t(r) * Fixture::DIM + i]) * q[size_t(r) * Fixture::DIM + j];
                    n++;
                }
            }
            CHECK_NEAR(mean[i], sum / n, 1e-6, 1e-5);
            CHECK_NEAR(second[i * Fixture::DIM + j], product / n, 1e-6, 1e-5);
        }
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Few queries at a time, as in a generation: none is lost, and a new block gives earlier ones less weight, by the
// tokens of the block that it ends.
static void test_few_queries() {
    Fixture f;
    Random random(6);
    kvmerge_observer_params params = params_for(KVMERGE_OBSERVE_QUERIES, KVMERGE_BIAS_NONE);
    params.n_tokens = 300;
    kvmerge_observer * o = make(params);
    double sum[Fixture::DIM] = {}, second[Fixture::DIM * Fixture::DIM] = {}, weight = 0;
    int before = 0;
    for (const int calls : {2, 50, 0, 100, 22}) {
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        const double keep = std::exp(std::log(0.7) * before / 128);
        before = calls * Fixture::TOKENS;
        const auto decay = [&](double & x) { x *= keep; };
        std::for_each(sum, std::end(sum), decay);
        std::for_each(second, std::end(second), decay);
        decay(weight);
        for (int call = 0; call < calls; call++) {
            for (float & x : f.q) {
                x = float(random.normal());
            }
            f.decode(o);
            for (int r = 0; r < Fixture::TOKENS * Fixture::HEADS; r++) {
                const float * q = f.q.data() + r * Fixture::DIM;
                for (int i = 0; i < Fixture::DIM; i++) {
                    sum[i] += q[i];
                    for (int j = 0; j < Fixture::DIM; j++) {
                        second[i * Fixture::DIM + j] += double(q[i]) * q[j];
                    }
                }
                weight++;
            }
        }
        float mean_seen[Fixture::DIM], second_seen[Fixture::DIM * Fixture::DIM];
        CHECK(kvmerge_query_moments(o, 0, 0, mean_seen, second_seen) == KVMERGE_OK);
        for (int i = 0; i < Fixture::DIM * Fixture::DIM; i++) {
            CHECK_NEAR(second_seen[i], second[i] / weight, 1e-5, 1e-5);
            CHECK_NEAR(mean_seen[i % Fixture::DIM], sum[i % Fixture::DIM] / weight, 1e-5, 1e-5);
        }
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

static void test_keep_everything_changes_nothing() {
    for (const bool transposed : {false, true}) {
        Fixture f(transposed);
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
        f.decode(o);
        const auto k = f.k, v = f.v;
        CHECK(MoveArrays().apply(o) == KVMERGE_OK);
        CHECK(f.k == k && f.v == v);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

static void test_merge_and_move() {
    for (const bool transposed : {false, true}) {
        Fixture f(transposed);
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
        f.decode(o);
        const auto k = f.k, v = f.v;
        const auto value = [&](const std::vector<float> & x, int cell, int i) {
            return transposed ? x[i * Fixture::CELLS + cell] : x[cell * Fixture::DIM + i];
        };
        MoveArrays moves; // 0 and 1 merge into cell 2, and 2 moves to cell 0: each goes where the other was
        moves.target[1] = 0;
        moves.weight[0] = 0.25f;
        moves.weight[1] = 0.75f;
        moves.dest[0] = 2;
        moves.dest[2] = 0;
        CHECK(moves.apply(o) == KVMERGE_OK);
        for (int i = 0; i < Fixture::DIM; i++) {
            CHECK_NEAR(f.k[2 * 4 + i], 0.25 * k[i] + 0.75 * k[4 + i], 1e-6, 0);
            CHECK_NEAR(f.k[i], k[2 * 4 + i], 0, 0);
            CHECK_NEAR(value(f.v, 2, i), 0.25 * value(v, 0, i) + 0.75 * value(v, 1, i), 1e-6, 0);
            CHECK_NEAR(value(f.v, 0, i), value(v, 2, i), 0, 0);
            CHECK_NEAR(f.k[5 * 4 + i], k[5 * 4 + i], 0, 0);
        }
        const int32_t cells[] = {2, 0};
        float keys[8], values[8];
        CHECK(kvmerge_read_cells(o, 0, 0, cells, 2, keys, values) == KVMERGE_OK);
        CHECK(keys[1] == f.k[2 * 4 + 1] && values[5] == value(f.v, 0, 1));
        keys[0] = 9;
        CHECK(kvmerge_write_cells(o, 0, 0, cells, 2, keys, values) == KVMERGE_OK);
        CHECK(f.k[2 * 4] == 9);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// Planning over cells where they lie is planning over what kvmerge_read_cells gives.
static void test_plan_cells() {
    for (const bool transposed : {false, true}) {
        Fixture f(transposed);
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
        const int32_t cells[] = {2, 0, 7, 1, 5};
        const double rate[] = {0.1, 3, 0.5, 0.4, 2};
        kvmerge_groups_params p = {5, 0, 0, 0, 4, 2, 8, 0.5, nullptr, nullptr, rate};
        int32_t there[5] = {9, 9, 9, 9, 9}, read[5];
        double cost_there, cost_read;
        CHECK(kvmerge_plan_cells(o, 0, 0, cells, &p, there, &cost_there) == KVMERGE_E_STATE); // nothing decoded yet
        f.decode(o);
        CHECK(kvmerge_plan_cells(o, 0, 0, cells, &p, there, &cost_there) == KVMERGE_OK);
        float keys[5 * Fixture::DIM], values[5 * Fixture::DIM];
        CHECK(kvmerge_read_cells(o, 0, 0, cells, 5, keys, values) == KVMERGE_OK);
        p.head_dim_k = p.head_dim_v = Fixture::DIM;
        p.keys = keys, p.values = values;
        CHECK(kvmerge_plan_groups(&p, read, &cost_read) == KVMERGE_OK);
        CHECK(std::memcmp(there, read, sizeof there) == 0);
        CHECK_NEAR(cost_there, cost_read, 1e-5, 0);

        const int32_t outside[] = {2, 0, 8, 1, 5};
        there[0] = 77;
        CHECK(kvmerge_plan_cells(o, 0, 0, outside, &p, there, nullptr) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_plan_cells(o, 1, 0, cells, &p, there, nullptr) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_plan_cells(o, 0, 1, cells, &p, there, nullptr) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_plan_cells(o, 0, 0, nullptr, &p, there, nullptr) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_plan_cells(nullptr, 0, 0, cells, &p, there, nullptr) == KVMERGE_E_ARGUMENT);
        p.operations = 5;
        CHECK(kvmerge_plan_cells(o, 0, 0, cells, &p, there, nullptr) == KVMERGE_E_ARGUMENT);
        CHECK(there[0] == 77);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// With keys that carry no rotation. The kernel's own test has rotated ones.
static void test_project_cells() {
    for (const bool transposed : {false, true}) {
        Fixture f(transposed);
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
        const int32_t cells[] = {2, 0, 7}, positions[] = {5, 9, 0};
        const float weight[] = {1, -2, 3, 0.5f};
        float product[3] = {9, 9, 9}, length[3], keys[3 * Fixture::DIM], values[3 * Fixture::DIM];
        CHECK(kvmerge_project_cells(o, 0, 0, cells, positions, 3, weight, product, length) == KVMERGE_E_STATE);
        f.decode(o);
        CHECK(kvmerge_read_cells(o, 0, 0, cells, 3, keys, values) == KVMERGE_OK);
        CHECK(kvmerge_project_cells(o, 0, 0, cells, positions, 3, weight, product, length) == KVMERGE_OK);
        for (int c = 0; c < 3; c++) { // the fixture's keys carry no rotation
            double sum = 0, square = 0;
            for (int i = 0; i < Fixture::DIM; i++) {
                sum += weight[i] * keys[c * Fixture::DIM + i];
                square += values[c * Fixture::DIM + i] * values[c * Fixture::DIM + i];
            }
            CHECK_NEAR(product[c], sum, 1e-5, 0);
            CHECK_NEAR(length[c], std::sqrt(square), 1e-5, 0);
        }
        product[0] = 77;
        const int32_t outside[] = {2, 0, 8};
        CHECK(kvmerge_project_cells(o, 0, 0, outside, positions, 3, weight, product, length) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_project_cells(o, 0, 0, cells, nullptr, 3, weight, product, length) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_project_cells(o, 0, 0, cells, positions, 3, nullptr, product, length) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_project_cells(o, 0, 0, cells, positions, 3, weight, nullptr, length) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_project_cells(o, 1, 0, cells, positions, 3, weight, product, length) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_project_cells(nullptr, 0, 0, cells, positions, 3, weight, product, length) == KVMERGE_E_ARGUMENT);
        CHECK(product[0] == 77);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// Planning forgets what it remembers of a cell when the cell is written, whoever writes it.
static void test_plan_forgets() {
    for (const bool transposed : {false, true}) {
        Fixture f(transposed);
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
        f.decode(o);
        const int32_t cells[] = {0, 1, 2, 3, 4, 5, 6, 7};
        Random random(11);
        const auto writing = [&](int how) { // changes some cells' keys and values
            const int cell = random.integer(0, 2);
            const int32_t which[] = {cell};
            const auto x = random.normals(Fixture::DIM);
            const auto at = [&](int i) { return transposed ? i * Fixture::CELLS + cell : cell * Fixture::DIM + i; };
            if (how == 0) {
                CHECK(kvmerge_write_cells(o, 0, 0, which, 1, x.data(), x.data()) == KVMERGE_OK);
            } else if (how == 1) {
                MoveArrays moves;
                moves.target[cell] = cell == 0 ? 1 : 0;
                moves.weight[0] = moves.weight[1] = moves.weight[2] = 1;
                moves.weight[cell] = 0;
                CHECK(moves.apply(o) == KVMERGE_OK);
                MoveArrays swapped; // 0 and 1 change places
                std::swap(swapped.dest[0], swapped.dest[1]);
                CHECK(swapped.apply(o) == KVMERGE_OK);
            } else if (how == 2) { // llama.cpp decodes
                for (int i = 0; i < Fixture::DIM; i++) {
                    f.k[cell * Fixture::DIM + i] = x[size_t(i)];
                    f.v[at(i)] = x[size_t(i)];
                }
                CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
                f.decode(o);
            } else { // llama.cpp shifts positions
                Tensor shift(GGML_TYPE_F32, GGML_OP_ROPE, "", Fixture::DIM, Fixture::CELLS, 1, f.k.data());
                shift.view_src = &f.cache_k;
                const float magnitude = 1;
                std::memcpy(&shift.op_params[8], &magnitude, sizeof magnitude);
                for (int i = 0; i < Fixture::DIM * Fixture::CELLS; i++) {
                    f.k[i] = float(random.normal());
                }
                CHECK(!kvmerge_eval_callback(&shift, true, o));
                CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
                f.decode(o); // as it always does next: what is not in the host's memory is copied there anew
            }
        };
        for (int round = 0; round < 200; round++) {
            std::vector<double> rate;
            for (int c = 0; c < Fixture::CELLS; c++) {
                rate.push_back(std::exp(double(random.normal())));
            }
            kvmerge_groups_params p = {
                Fixture::CELLS, Fixture::DIM, Fixture::DIM, 0, Fixture::CELLS, random.integer(0, 3), 3, 0.5,
                nullptr,        nullptr,      rate.data()};
            int32_t there[Fixture::CELLS], read[Fixture::CELLS];
            double cost_there, cost_read;
            CHECK(kvmerge_plan_cells(o, 0, 0, cells, &p, there, &cost_there) == KVMERGE_OK);
            float keys[Fixture::CELLS * Fixture::DIM], values[Fixture::CELLS * Fixture::DIM];
            CHECK(kvmerge_read_cells(o, 0, 0, cells, Fixture::CELLS, keys, values) == KVMERGE_OK);
            p.keys = keys, p.values = values;
            CHECK(kvmerge_plan_groups(&p, read, &cost_read) == KVMERGE_OK);
            CHECK_NEAR(cost_there, cost_read, 1e-6, 1e-4);
            CHECK(std::memcmp(there, read, sizeof there) == 0);
            writing(random.integer(0, 3));
        }
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// Where the softmax writes over its scores, one stop a layer shows the queries too, from the second graph on.
static void test_queries_at_the_softmax() {
    float mean[2][4], second[2][16];
    for (int in_place = 0; in_place < 2; in_place++) {
        Fixture f;
        f.soft_max.src[0] = &f.kq;
        if (in_place) {
            f.kq.data = f.soft_max.data;
        }
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_FOLDED));
        f.decode(o);
        CHECK(f.stops == 2);
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        f.decode(o);
        CHECK(f.stops == (in_place ? 1 : 2));
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK && stats.n_layer_seen == 1);
        CHECK(kvmerge_query_moments(o, 0, 0, mean[in_place], second[in_place]) == KVMERGE_OK);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(mean[0][i] == mean[1][i] && mean[0][i] != 0);
    }
    CHECK(std::memcmp(second[0], second[1], sizeof second[0]) == 0);
}

// The folded bias: averaged over the queries seen, the merged key's logit gains H(w), up to the ridge.
static void test_folded_bias() {
    Fixture f;
    for (int h = 0; h < Fixture::HEADS; h++) {
        for (int t = 0; t < Fixture::TOKENS; t++) {
            f.q[(h * Fixture::TOKENS + t) * 4] += 8; // queries with a common direction, as real ones have
        }
    }
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_FOLDED));
    f.decode(o);
    const auto k = f.k;
    MoveArrays moves;
    moves.target[1] = 0;
    moves.weight[0] = moves.weight[1] = 0.5f;
    CHECK(moves.apply(o) == KVMERGE_OK);
    double gain = 0;
    for (int t = 0; t < Fixture::TOKENS * Fixture::HEADS; t++) {
        for (int i = 0; i < 4; i++) {
            gain += 0.5 * f.q[t * 4 + i] * (f.k[i] - 0.5 * (k[i] + k[4 + i])) / (Fixture::TOKENS * Fixture::HEADS);
        }
    }
    CHECK_NEAR(gain, std::log(2.0), 0.1, 0);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

static void test_exact_bias() {
    Fixture f;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_EXACT));
    f.decode(o);
    MoveArrays moves;
    moves.target[1] = 0;
    moves.weight[0] = moves.weight[1] = 0.5f;
    moves.dest[0] = 1;
    CHECK(moves.apply(o) == KVMERGE_OK);
    f.rows = {5, 6, 7};
    for (const bool kept : {true, false}) {
        std::fill(f.scores.begin(), f.scores.end(), 0.0f);
        f.decode(o);
        for (int row = 0; row < Fixture::TOKENS * Fixture::HEADS; row++) {
            for (int c = 0; c < Fixture::CELLS; c++) { // times the scale
                CHECK_NEAR(0.5 * f.scores[row * Fixture::CELLS + c], kept && c == 1 ? std::log(2.0) : 0, 1e-6, 0);
            }
        }
        f.rows = {1, 5, 6}; // a token goes to the merged cell, which its host has freed: the bias was of the old ones
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

static void test_refusals() {
    Fixture f;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
    kvmerge_block_stats stats;
    CHECK(MoveArrays().apply(o) == KVMERGE_E_STATE); // nothing decoded yet
    f.decode(o);
    const auto k = f.k;
    const auto refused = [&](auto change, const char * why) {
        MoveArrays moves;
        change(moves);
        CHECK(moves.apply(o) == KVMERGE_E_ARGUMENT);
        CHECK(std::strstr(kvmerge_last_error(), why));
        CHECK(f.k == k);
    };
    refused([](MoveArrays & p) { p.target[0] = 99; }, "outside the cache");
    refused([](MoveArrays & p) { p.target[1] = 2, p.target[2] = 0; }, "not a pivot");
    refused([](MoveArrays & p) { p.weight[1] = -1; }, "negative or not finite");
    refused([](MoveArrays & p) { p.weight[1] = NAN; }, "negative or not finite");
    refused([](MoveArrays & p) { p.weight[1] = 0.5f; }, "do not sum to 1");
    refused([](MoveArrays & p) { p.dest[1] = 8; }, "destination is outside");
    refused([](MoveArrays & p) { p.dest[1] = 0; }, "taken by another group");
    auto wide = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE); // made for more cells than the context has
    wide.n_cells = 12;
    kvmerge_observer * w = make(wide);
    f.decode(w);
    MoveArrays beyond;
    beyond.target.resize(12, -1), beyond.position.resize(12, 0), beyond.dest.resize(12, 0),
        beyond.weight.resize(12, 1.0f);
    beyond.target[9] = 9;
    beyond.dest[9] = 5;
    CHECK(beyond.apply(w) == KVMERGE_E_ARGUMENT);
    CHECK(std::strstr(kvmerge_last_error(), "cell 9: it is outside the cache"));
    CHECK(kvmerge_observer_free(w) == KVMERGE_OK);
    int32_t cell = 8;
    float x[4];
    CHECK(kvmerge_read_cells(o, 0, 0, &cell, 1, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_read_cells(o, 1, 0, &cell, 0, x, x) == KVMERGE_E_ARGUMENT);
    kvmerge_key_rotation rotation;
    CHECK(kvmerge_rotation(o, 0, &rotation, nullptr) == KVMERGE_OK && rotation.n_rot == 0);
    CHECK(kvmerge_rotation(o, 1, &rotation, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_rotation(o, 0, nullptr, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_apply(o, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_stats(nullptr, &stats) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_eval_callback(nullptr, false, nullptr)); // the graph goes on
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    CHECK(kvmerge_observer_create(nullptr, &o) == KVMERGE_E_ARGUMENT);
    auto params = params_for(0, 0);
    params.n_head = 3, params.n_head_kv = 2;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);

    { // a cell type that is not handled is an error of the block, not wrong numbers
        Fixture g;
        g.cache_k.type = GGML_TYPE_Q4_K;
        o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
        g.decode(o);
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_UNSUPPORTED);
        CHECK(std::strstr(kvmerge_last_error(), "use f16, f32, bf16, q8_0"));
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    { // CUDA without its library says what to do
        auto cuda = params_for(0, 0);
        cuda.device = KVMERGE_DEVICE_CUDA;
        if (kvmerge_observer_create(&cuda, &o) == KVMERGE_OK) { // a machine with a GPU, and the CUDA part is built
            CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
        } else {
            CHECK(kvmerge_device_check(KVMERGE_DEVICE_CUDA) == KVMERGE_E_UNSUPPORTED);
            CHECK(std::strstr(kvmerge_last_error(), "no CUDA device: "));
        }
        CHECK(kvmerge_device_check(7) == KVMERGE_E_ARGUMENT && kvmerge_device_check(KVMERGE_DEVICE_CPU) == KVMERGE_OK);
    }
    Fixture g; // more tokens than the block was made for
    o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
    for (int i = 0; i < 6; i++) {
        g.decode(o);
    }
    CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// A query head's moments are of its queries as they were before their rotation, times the scale of the scores: of few
// tokens at a time and of many, in both orders of pairs, stored by a Hadamard matrix or not.
static void test_query_heads(bool neox, bool hadamard, int n) {
    constexpr int D = Fixture::DIM, HEADS = Fixture::HEADS;
    Fixture f;
    Random random(8);
    const std::vector<float> before = random.normals(size_t(n) * HEADS * D);
    std::vector<float> q = before;
    std::vector<int32_t> at(static_cast<size_t>(n));
    for (int r = 0; r < n; r++) {
        at[size_t(r)] = 1000 + 7 * r;
    }
    for (int h = 0; h < HEADS; h++) {
        for (int r = 0; r < n; r++) {
            float * const x = q.data() + (size_t(h) * size_t(n) + size_t(r)) * D;
            for (int j = 0; j < 2; j++) { // 1 and 1/100 radian a position
                const double angle = at[size_t(r)] * std::pow(10000, -j / 2.0);
                float &a = x[neox ? j : 2 * j], &b = x[neox ? j + 2 : 2 * j + 1];
                const double first = a, second = b;
                a = float(first * std::cos(angle) - second * std::sin(angle));
                b = float(second * std::cos(angle) + first * std::sin(angle));
            }
            if (hadamard) {
                const float y[D] = {x[0] + x[1] + x[2] + x[3], x[0] - x[1] + x[2] - x[3], x[0] + x[1] - x[2] - x[3],
                                    x[0] - x[1] - x[2] + x[3]};
                std::transform(y, y + D, x, [](float z) { return z / 2; });
            }
        }
    }
    f.rows.resize(size_t(n));
    f.index.ne[0] = n;
    f.index.data = f.rows.data();
    Tensor many(GGML_TYPE_F32, GGML_OP_PERMUTE, "q", D, n, HEADS, q.data());
    Tensor positions(GGML_TYPE_I32, GGML_OP_NONE, "inp_pos", n, 1, 1, at.data());
    Tensor rope(GGML_TYPE_F32, GGML_OP_ROPE, "Kcur", D, n, 1, f.k.data());
    rope.src[0] = &f.plain_key;
    rope.src[1] = &positions;
    rope.op_params[1] = D;
    rope.op_params[2] = neox ? GGML_ROPE_TYPE_NEOX : 0;
    const float numbers[] = {10000, 1, 0, 1, 32, 1};
    std::memcpy(&rope.op_params[5], numbers, sizeof numbers);
    Tensor matrix(GGML_TYPE_F32, GGML_OP_NONE, "attn_inp_k_rot", D, D, 1, f.k.data());
    Tensor product(GGML_TYPE_F32, GGML_OP_MUL_MAT, "", D, n, 1, f.k.data());
    product.src[0] = &matrix;
    product.src[1] = &rope;
    f.k_write.src[0] = hadamard ? &product : &rope;
    f.kq.src[1] = &many;
    kvmerge_observer_params params = params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE);
    params.n_tokens = 200;
    kvmerge_observer * o = make(params);
    f.decode(o);
    kvmerge_key_rotation rotation;
    CHECK(kvmerge_rotation(o, 0, &rotation, nullptr) == KVMERGE_OK);
    CHECK(rotation.neox == int(neox) && rotation.n_rot == D && rotation.hadamard == (hadamard ? D : 0));
    const int step = std::max(1, n / 64);
    for (int h = 0; h < HEADS; h++) {
        float mean[D], second[D * D];
        CHECK(kvmerge_query_head_moments(o, 0, h, mean, second) == KVMERGE_OK);
        for (int i = 0; i < D * D; i++) {
            double sum = 0, product_sum = 0;
            int rows = 0;
            for (int r = 0; r < n; r += step, rows++) {
                const float * const x = before.data() + (size_t(h) * size_t(n) + size_t(r)) * D;
                sum += 0.5 * x[i % D];
                product_sum += 0.25 * x[i / D] * x[i % D];
            }
            CHECK_NEAR(mean[i % D], sum / rows, 1e-5, 1e-5);
            CHECK_NEAR(second[i], product_sum / rows, 1e-5, 1e-5);
        }
    }
    float x[D * D];
    CHECK(kvmerge_query_head_moments(o, 0, HEADS, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_query_head_moments(o, 1, 0, x, x) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_query_head_moments(o, 0, 0, x, nullptr) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// What query heads need, and what is said where it is not there.
static void test_query_heads_refused() {
    float x[Fixture::DIM * Fixture::DIM];
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE));
    CHECK(kvmerge_query_head_moments(o, 0, 0, x, x) == KVMERGE_E_STATE);
    CHECK(std::strstr(kvmerge_last_error(), "no queries observed"));
    Fixture f;
    std::vector<int64_t> wide(Fixture::TOKENS);
    Tensor positions(GGML_TYPE_I64, GGML_OP_NONE, "inp_pos", Fixture::TOKENS, 1, 1, wide.data());
    Tensor rope(GGML_TYPE_F32, GGML_OP_ROPE, "Kcur", Fixture::DIM, Fixture::TOKENS, 1, f.k.data());
    rope.src[0] = &f.plain_key;
    rope.op_params[1] = Fixture::DIM;
    const float numbers[] = {10000, 1, 0, 1, 32, 1};
    std::memcpy(&rope.op_params[5], numbers, sizeof numbers);
    f.k_write.src[0] = &rope;
    for (Tensor * given : {(Tensor *)nullptr, &positions}) {
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        rope.src[1] = given;
        f.decode(o);
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_UNSUPPORTED);
        CHECK(std::strstr(kvmerge_last_error(), "positions have an unexpected type or shape"));
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    f.k_write.src[0] = &f.plain_key;
    const auto see = [](kvmerge_observer * observer, ggml_tensor * node) {
        if (kvmerge_eval_callback(node, true, observer)) {
            kvmerge_eval_callback(node, false, observer);
        }
    };
    // More queries than tokens, and queries of tokens whose keys nobody saw.
    std::vector<float> too_many(size_t(1000) * Fixture::HEADS * Fixture::DIM);
    Tensor many(GGML_TYPE_F32, GGML_OP_PERMUTE, "q", Fixture::DIM, 1000, Fixture::HEADS, too_many.data());
    for (const bool written : {true, false}) {
        o = make(params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE));
        f.decode(o);
        if (written) {
            f.kq.src[1] = &many;
        } else {
            CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        }
        see(o, &f.kq);
        f.kq.src[1] = &f.queries;
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_STATE);
        CHECK(std::strstr(kvmerge_last_error(), "whose keys were not seen to be written"));
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    // A graph that ended before its attention.
    o = make(params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE));
    for (Tensor * node : {&f.k_write, &f.v_write, &f.kq}) {
        see(o, node);
    }
    CHECK(kvmerge_query_head_moments(o, 0, 0, x, x) == KVMERGE_E_STATE);
    CHECK(std::strstr(kvmerge_last_error(), "scale"));
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    o = make(params_for(KVMERGE_OBSERVE_QUERIES, KVMERGE_BIAS_NONE));
    f.decode(o);
    CHECK(kvmerge_query_head_moments(o, 0, 0, x, x) == KVMERGE_E_STATE);
    CHECK(std::strstr(kvmerge_last_error(), "ask for KVMERGE_OBSERVE_QUERY_HEADS"));
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    kvmerge_observer_params params = params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE);
    params.device = KVMERGE_DEVICE_CUDA;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_UNSUPPORTED);
    CHECK(std::strstr(kvmerge_last_error(), "give KVMERGE_DEVICE_CPU"));
}

// The first layer rotates nothing, the second does.
static void test_query_heads_of_a_later_layer() {
    constexpr int D = Fixture::DIM, T = Fixture::TOKENS;
    Fixture plain(true, "0"), turned(true, "1");
    const std::vector<float> before = turned.q;
    int32_t at[T];
    for (int r = 0; r < T; r++) {
        at[r] = 1000 + 7 * r;
        for (int h = 0; h < Fixture::HEADS; h++) {
            float * const x = turned.q.data() + (h * T + r) * D;
            for (int j = 0; j < 2; j++) {
                const double angle = at[r] * std::pow(10000, -j / 2.0), a = x[2 * j], b = x[2 * j + 1];
                x[2 * j] = float(a * std::cos(angle) - b * std::sin(angle));
                x[2 * j + 1] = float(b * std::cos(angle) + a * std::sin(angle));
            }
        }
    }
    Tensor positions(GGML_TYPE_I32, GGML_OP_NONE, "inp_pos", T, 1, 1, at);
    Tensor rope(GGML_TYPE_F32, GGML_OP_ROPE, "Kcur", D, T, 1, turned.k.data());
    rope.src[0] = &turned.plain_key;
    rope.src[1] = &positions;
    rope.op_params[1] = D;
    const float numbers[] = {10000, 1, 0, 1, 32, 1};
    std::memcpy(&rope.op_params[5], numbers, sizeof numbers);
    turned.k_write.src[0] = &rope;
    kvmerge_observer_params params = params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE);
    params.n_layer = 2;
    kvmerge_observer * o = make(params);
    plain.decode(o);
    turned.decode(o);
    float mean[D], second[D * D];
    CHECK(kvmerge_query_head_moments(o, 1, 0, mean, second) == KVMERGE_OK);
    for (int i = 0; i < D; i++) {
        double sum = 0;
        for (int r = 0; r < T; r++) {
            sum += 0.5 * before[size_t(r) * D + size_t(i)];
        }
        CHECK_NEAR(mean[i], sum / T, 1e-5, 1e-5);
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Memory that lacks at any moment of the first block: the next block is whole, or there is the same error.
static void test_memory_that_lacks() {
    float expected[Fixture::DIM * Fixture::DIM] = {}, x[Fixture::DIM * Fixture::DIM];
    bool came = false; // some decode had all it asked for
    for (int allocations = -1; allocations < 200 && !came; allocations++) {
        Fixture f;
        kvmerge_observer * const o = make(params_for(KVMERGE_OBSERVE_QUERY_HEADS, KVMERGE_BIAS_NONE));
        allocations_left = allocations;
        f.decode(o);
        came = allocations_left > 0;
        allocations_left = -1;
        kvmerge_block_stats stats;
        const kvmerge_status status = kvmerge_observer_stats(o, &stats);
        CHECK(allocations < 0 || came ? status == KVMERGE_OK : status == KVMERGE_E_MEMORY || status == KVMERGE_OK);
        if (status != KVMERGE_OK) {
            CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
            f.decode(o);
        }
        CHECK(kvmerge_query_head_moments(o, 0, 0, x, x) == KVMERGE_OK);
        for (int i = 0; i < Fixture::DIM * Fixture::DIM; i++) {
            CHECK(allocations < 0 || status != KVMERGE_OK || x[i] == expected[i]);
        }
        if (allocations < 0) {
            std::copy(x, std::end(x), expected);
        }
        CHECK(kvmerge_query_moments(o, 0, 0, x, x) == KVMERGE_OK);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    CHECK(came);
}

// Flash attention shows no matrix: mass, entropy and moments come out as from the matrix.
static void test_flash_attention() {
    Fixture f(false);
    const kvmerge_observer_params params =
        params_for(KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY, KVMERGE_BIAS_FOLDED);
    kvmerge_observer * flash = make(params);
    kvmerge_observer * matrix = make(params);
    std::vector<uint16_t> half_mask(Fixture::CELLS * Fixture::TOKENS, 0xfc00);
    std::vector<float> mask(half_mask.size(), -INFINITY);
    for (int t = 0; t < Fixture::TOKENS; t++) {
        for (int c = 0; c <= t; c++) {
            half_mask[t * Fixture::CELLS + c] = 0;
            mask[t * Fixture::CELLS + c] = 0;
        }
    }
    for (int h = 0; h < Fixture::HEADS; h++) { // the matrix, in double
        for (int t = 0; t < Fixture::TOKENS; t++) {
            double e[Fixture::TOKENS], sum = 0;
            for (int c = 0; c <= t; c++) {
                double dot = 0;
                for (int i = 0; i < 4; i++) {
                    dot += double(f.q[(h * Fixture::TOKENS + t) * 4 + i]) * f.k[c * 4 + i];
                }
                sum += e[c] = std::exp(0.5 * dot);
            }
            for (int c = 0; c <= t; c++) {
                f.p[(h * Fixture::TOKENS + t) * Fixture::CELLS + c] = float(e[c] / sum);
            }
        }
    }
    Tensor mask_tensor(GGML_TYPE_F32, GGML_OP_NONE, "mask", Fixture::CELLS, Fixture::TOKENS, 1, mask.data());
    Tensor half_mask_tensor(GGML_TYPE_F16, GGML_OP_NONE, "mask", Fixture::CELLS, Fixture::TOKENS, 1, half_mask.data());
    f.soft_max.src[1] = &mask_tensor;
    f.decode(matrix);
    Tensor keys(GGML_TYPE_F32, GGML_OP_PERMUTE, "", Fixture::DIM, Fixture::CELLS, 1, f.k.data());
    keys.view_src = &f.cache_k;
    Tensor node(GGML_TYPE_F32, GGML_OP_FLASH_ATTN_EXT, "", Fixture::DIM, Fixture::HEADS, Fixture::TOKENS, nullptr);
    node.src[0] = &f.queries;
    node.src[1] = &keys;
    node.src[3] = &half_mask_tensor;
    const float scale = 0.5f;
    std::memcpy(node.op_params, &scale, sizeof scale);
    Tensor::place();
    for (ggml_tensor * t : {(ggml_tensor *)&f.k_write, (ggml_tensor *)&f.v_write, (ggml_tensor *)&node}) {
        if (kvmerge_eval_callback(t, true, flash)) {
            CHECK(kvmerge_eval_callback(t, false, flash));
        }
    }
    kvmerge_block_stats a, b;
    CHECK(kvmerge_observer_stats(flash, &a) == KVMERGE_OK);
    CHECK(kvmerge_observer_stats(matrix, &b) == KVMERGE_OK);
    CHECK(a.n_layer_seen == 1 && a.n_tokens == b.n_tokens);
    for (int c = 0; c < Fixture::CELLS; c++) {
        CHECK_NEAR(a.mass[c], b.mass[c], 1e-5, 0);
    }
    for (int i = 0; i < Fixture::HEADS * 16; i++) {
        CHECK_NEAR(a.entropy[i], b.entropy[i], 1e-5, 0);
    }
    float mean[2][Fixture::DIM], second[2][Fixture::DIM * Fixture::DIM];
    CHECK(kvmerge_query_moments(flash, 0, 0, mean[0], second[0]) == KVMERGE_OK);
    CHECK(kvmerge_query_moments(matrix, 0, 0, mean[1], second[1]) == KVMERGE_OK);
    CHECK(std::memcmp(mean[0], mean[1], sizeof mean[0]) == 0 &&
          std::memcmp(second[0], second[1], sizeof second[0]) == 0);
    CHECK(kvmerge_query_moments(flash, 1, 0, mean[0], second[0]) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_query_moments(flash, 0, 0, nullptr, second[0]) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_free(flash) == KVMERGE_OK);
    CHECK(kvmerge_observer_free(matrix) == KVMERGE_OK);
}

// With observation queries the mass is over the newest ones, whatever ubatch they came in.
static void test_window() {
    Fixture f;
    auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE);
    params.mass_queries = 1;
    kvmerge_observer * o = make(params);
    f.decode(o);
    f.decode(o);
    kvmerge_block_stats s;
    CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_OK);
    for (int c = 0; c < 3; c++) {
        CHECK_NEAR(s.mass[c], Fixture::HEADS / 3.0, 1e-6, 0); // the last token's row, once
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    params.mass_queries = -1;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
    params.mass_queries = 0;
    params.mass_sample = -1;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
    params.mass_sample = 0;
    params.mass_power = 1.2f;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
}

// Values weighted otherwise than keys: cell 0 takes cell 1's value on top of its own, and keeps its key.
static void test_value_weights() {
    Fixture f(false);
    kvmerge_observer * o = make(params_for(0, KVMERGE_BIAS_NONE));
    f.decode(o);
    MoveArrays a;
    std::vector<float> value_weight(Fixture::CELLS, 1.0f);
    a.target[1] = 0;
    a.weight[0] = 1, a.weight[1] = 0;
    const kvmerge_moves moves = {
        a.target.data(), a.weight.data(), value_weight.data(), a.position.data(), a.dest.data(), nullptr, 0};
    const auto k = f.k, v = f.v;
    CHECK(kvmerge_apply(o, &moves) == KVMERGE_OK);
    for (int i = 0; i < Fixture::DIM; i++) {
        CHECK_NEAR(f.k[i], k[i], 1e-6, 0);
        CHECK_NEAR(f.v[i], v[i] + v[Fixture::DIM + i], 1e-6, 0);
    }
    value_weight[0] = NAN;
    CHECK(kvmerge_apply(o, &moves) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// At layers that are not in the list nothing stops. Their caches, which may have fewer cells, only count as memory.
static void test_layers_left_alone() {
    const int32_t layers[] = {3, 7};
    auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE);
    params.n_layer = 2;
    params.layers = layers;
    kvmerge_observer * o = make(params);
    Fixture window(true, "0"), third(true, "3"), seventh(true, "7");
    window.cache_k.ne[1] = 4; // of the 8
    window.decode(o);
    CHECK(window.stops == 0);
    third.decode(o);
    seventh.decode(o);
    CHECK(third.stops == 1 && seventh.stops == 1);
    kvmerge_block_stats s;
    CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_OK);
    CHECK(s.n_tokens == 3 && s.n_layer_seen == 2 && s.mass[Fixture::CELLS] == s.mass[0] && s.mass[0] > 0);
    kvmerge_cache_info info;
    CHECK(kvmerge_observer_cache_info(o, &info) == KVMERGE_OK);
    CHECK(info.n_cells == 8 && info.bytes == 3 * 2 * 4 * 4 * 8);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);

    params.layers = nullptr; // every layer: then the caches have to be alike
    o = make(params);
    Fixture first(true, "0"), second(true, "1");
    second.cache_k.ne[1] = 4;
    first.decode(o);
    second.decode(o);
    CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_E_UNSUPPORTED);
    CHECK(std::strstr(kvmerge_last_error(), "layer 1 has 4 cells where the first has 8"));
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);

    const int32_t unordered[] = {7, 3};
    params.layers = unordered;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_E_ARGUMENT);
}

// A ring of 8 cells: what the first ubatch of a block overwrites, no window of its first token sees; what later ones
// do, it may.
static void test_windows_reach_back() {
    kvmerge::WindowCells ring;
    ring.begin();
    ring.wrote({0, 1, 2, 3}, 8);
    ring.wrote({4, 5}, 8);
    ring.wrote({6, 7}, 8);
    CHECK(ring.reaches_back()); // nothing was there
    ring.begin();
    ring.wrote({0, 1}, 8);
    CHECK(ring.reaches_back());
    ring.wrote({2, 3}, 8);
    CHECK(!ring.reaches_back());
    ring.forget();
    CHECK(!ring.reaches_back() && ring.next() == 8 && ring.head() == 0);
    CHECK((ring.position() == std::vector<int64_t>{-1, -1, -1, -1, 4, 5, 6, 7}));
    ring.begin();
    ring.wrote({0, 1}, 8);
    ring.wrote({2}, 8);
    CHECK(ring.reaches_back()); // those cells were free
}

int main() {
    skip_without_isa();
    test_queries_at_the_softmax();
    for (const bool host : {true, false}) {
        on_host = host;
        test_statistics();
        test_unseen_cells();
        test_many_queries();
        test_few_queries();
        for (const int n : {3, 40, 200}) {
            for (const bool neox : {false, true}) {
                test_query_heads(neox, false, n);
                test_query_heads(neox, true, n);
            }
        }
        test_query_heads_refused();
        test_query_heads_of_a_later_layer();
        test_memory_that_lacks();
        test_flash_attention();
        test_keep_everything_changes_nothing();
        test_merge_and_move();
        test_plan_cells();
        test_plan_forgets();
        test_project_cells();
        test_folded_bias();
        test_exact_bias();
        test_window();
        test_windows_reach_back();
        test_value_weights();
        test_layers_left_alone();
    }
    on_host = true;
    test_refusals();
    std::printf("ok\n");
}
