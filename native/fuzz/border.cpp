// Every function of kvmerge.h, with arguments right and wrong, in any order, over graphs right and wrong. Arrays have
// the length that their comment asks for, and anything in them. Nothing may crash, hang or be caught by a sanitizer.
//
// With libFuzzer (-fsanitize=fuzzer) the bytes are its own; without, main() makes them from a seed.
#include "choices.hpp"
#include "graph.hpp"
#include "kvmerge.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "llama.h"

static std::map<std::string, std::map<int, long>> answers; // by function and status
static long calls = 0;

static kvmerge_status note(const char * function, kvmerge_status status) {
    calls++;
    answers[function][status]++;
    return status;
}
#define CALL(function, ...) note(#function, function(__VA_ARGS__))

struct Watched {
    kvmerge_observer * handle;               // a group's, or an observer's
    std::vector<kvmerge_observer *> streams; // of a group
    kvmerge_observer_params params;
    FuzzShape shape;
    std::vector<std::unique_ptr<FuzzGraph>> graphs; // a layer each; what the observer has seen has to stay
    bool huge;                                      // made for more than a test should allocate
};

class Session;

// A cache, and what its entry points of llama.cpp are given as a context.
struct Held {
    Session * session;
    kvmerge_observer * observer;
    kvmerge_cache * handle;
    int32_t n_layer, n_head_kv, n_cells;
    std::vector<char> saved;
};

class Session {
  public:
    explicit Session(Choices & c) : c_(c) { on_host = !c.one_in(3); }
    ~Session() {
        for (const auto & held : held_) {
            kvmerge_cache_free(held->handle);
        }
        for (Watched & w : watched_) {
            kvmerge_observer_free(w.handle);
        }
        for (kvmerge_log * log : logs_) {
            kvmerge_log_free(log);
        }
    }

    void run() {
        create();
        for (int i = 0; i < 60 && !c_.done(); i++) {
            step();
        }
    }

  private:
    void step() {
        switch (c_.below(24)) {
        case 19:
            return c_.one_in(2) ? hold() : use_cache();
        case 20:
        case 21:
        case 22:
            return use_cache();
        case 0:
            return c_.one_in(4) ? create() : decode();
        case 1:
            return c_.one_in(4) ? free_one() : begin();
        case 2:
        case 3:
            return decode();
        case 4:
            return lone_node();
        case 5:
            return look();
        case 6:
        case 7:
            return cells(false);
        case 8:
            return cells(true);
        case 9:
            return project();
        case 10:
        case 11:
            return apply();
        case 12:
            return plan();
        case 13:
            return expect();
        case 14:
            return score();
        case 15:
            return pack();
        case 16:
            return rows();
        case 17:
            return log();
        case 18:
            return words();
        default:
            return begin();
        }
    }

    // A handle: mostly a live one, else a freed, a foreign, or none.
    kvmerge_observer * handle(Watched *& of) {
        of = watched_.empty() ? nullptr : &watched_[size_t(c_.below(int(watched_.size())))];
        if (of && !c_.one_in(12)) {
            const bool one = !of->streams.empty() && !c_.one_in(20);
            return one ? of->streams[size_t(c_.below(int(of->streams.size())))] : of->handle;
        }
        of = nullptr;
        static char foreign[4096];
        switch (c_.below(5)) {
        case 0:
            return nullptr;
        case 1:
            return reinterpret_cast<kvmerge_observer *>(foreign + c_.byte());
        case 2:
            return reinterpret_cast<kvmerge_observer *>(uint64_t(c_.word()) << 32 | c_.word() | 3);
        case 3:
            return logs_.empty() ? nullptr : reinterpret_cast<kvmerge_observer *>(logs_.back());
        default:
            return freed_.empty() ? nullptr : freed_[size_t(c_.below(int(freed_.size())))];
        }
    }

    void create() {
        if (watched_.size() >= 4) {
            return free_one();
        }
        const FuzzShape shape(c_);
        kvmerge_observer_params p = {};
        p.n_layer = c_.between(1, 2);
        p.n_head = shape.n_head();
        p.n_head_kv = shape.n_head_kv;
        p.n_cells = shape.cells;
        p.n_tokens = c_.between(4, 200);
        p.observe = c_.below(64);
        p.bias = c_.below(3);
        p.mass_power = c_.of<float>({1, 1.5f, 2});
        p.mass_queries = c_.one_in(3) ? c_.below(5) : 0;
        p.mass_sample = c_.one_in(3) ? c_.below(9) : 0;
        p.query_decay = 0.7f;
        p.ridge = 0.05f;
        p.n_threads = c_.between(1, 3);
        p.ggml = fake_ggml();
        backend_room = c_.one_in(4) ? c_.below(3) : INT32_MAX;
        if (c_.one_in(8)) {
            p.ggml.buft_alloc_buffer = nullptr;
        }
        const int32_t numbers[] = {0, c_.one_in(20) ? 0 : 1};
        p.layers = c_.one_in(2) ? numbers : nullptr;
        bool huge = false;
        if (c_.one_in(3)) {
            int32_t * const fields[] = {&p.n_head, &p.n_head_kv,    &p.n_cells,     &p.n_tokens, &p.observe,
                                        &p.bias,   &p.mass_queries, &p.mass_sample, &p.device,   &p.n_threads};
            *fields[c_.below(10)] = c_.wild_int();
            float * const floats[] = {&p.mass_power, &p.query_decay, &p.ridge};
            if (c_.one_in(3)) {
                *floats[c_.below(3)] = c_.wild_float();
            }
            if (!p.layers && c_.one_in(40)) {
                p.n_layer = c_.wild_int();
            }
            huge = p.n_cells > 4096 || p.n_tokens > 4096 || p.n_head > 64 || p.n_layer > 64;
        }
        if (c_.one_in(30)) {
            p.ggml.tensor_get = nullptr;
        }
        kvmerge_observer * o = nullptr;
        const bool no_params = c_.one_in(40), no_out = c_.one_in(40);
        std::vector<kvmerge_observer *> streams;
        kvmerge_status status;
        if (shape.streams > 1 || c_.one_in(8)) {
            const int n = c_.one_in(20)   ? c_.of<int>({0, -1, INT_MIN, INT_MAX, 257})
                          : c_.one_in(20) ? 4
                                          : shape.streams;
            streams.resize(size_t(std::clamp(n, 1, 4)));
            status = CALL(kvmerge_observer_create_group, no_params ? nullptr : &p, n, no_out ? nullptr : &o,
                          c_.one_in(40) ? nullptr : streams.data());
        } else {
            status = CALL(kvmerge_observer_create, no_params ? nullptr : &p, no_out ? nullptr : &o);
        }
        if (status != KVMERGE_OK) {
            return;
        }
        p.layers = nullptr;
        watched_.push_back({o, streams, p, shape, {}, huge});
        for (int layer = 0; layer < std::min(p.n_layer, 2); layer++) {
            watched_.back().graphs.push_back(std::make_unique<FuzzGraph>(shape, layer, c_));
        }
    }

    void free_one() {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        const kvmerge_status status = CALL(kvmerge_observer_free, o);
        if (w && status == KVMERGE_OK) {
            freed_.push_back(o);
            freed_.insert(freed_.end(), w->streams.begin(), w->streams.end());
            watched_.erase(watched_.begin() + (w - watched_.data()));
        }
    }

    void begin() {
        Watched * w;
        CALL(kvmerge_observer_begin, handle(w));
        if (c_.one_in(8)) {
            CALL(kvmerge_observer_forget, handle(w));
        }
    }

    void decode() {
        Watched * w;
        kvmerge_observer * o = handle(w);
        if (!w || w->huge) {
            return lone_node();
        }
        o = c_.one_in(20) ? o : w->handle; // llama.cpp is not given a stream's
        if (c_.one_in(25)) {               // another context's, or the same one spoilt
            w->graphs.push_back(std::make_unique<FuzzGraph>(c_.one_in(2) ? w->shape : FuzzShape(c_), c_.below(3), c_));
        }
        if (c_.one_in(6)) {
            w->graphs[size_t(c_.below(int(w->graphs.size())))]->spoil(c_);
        }
        run_graphs(*w, o);
    }

    void run_graphs(Watched & w, kvmerge_observer * o) {
        for (auto & graph : w.graphs) {
            graph->next(c_);
            for (ggml_tensor * node : graph->order()) {
                calls++;
                const bool last = node == graph->order().back(), stop = kvmerge_eval_callback(node, true, o);
                if (last && !c_.one_in(20)) {
                    graph->run();
                }
                if (stop || c_.one_in(20)) {
                    calls++;
                    if (!kvmerge_eval_callback(node, false, o)) {
                        std::abort(); // the graph always goes on
                    }
                }
            }
        }
    }

    void lone_node() {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        ggml_tensor * node = nullptr;
        if (w && !w->huge && !w->graphs.empty() && !c_.one_in(10)) {
            node = w->graphs[size_t(c_.below(int(w->graphs.size())))]->any(c_);
        }
        calls++;
        kvmerge_eval_callback(node, c_.one_in(2), o);
    }

    int dim_of(kvmerge_observer * o, bool keys) {
        kvmerge_cache_info info;
        return kvmerge_observer_cache_info(o, &info) == KVMERGE_OK ? keys ? info.head_dim_k : info.head_dim_v : 128;
    }

    void look() {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        if (w && w->huge) {
            return begin();
        }
        kvmerge_block_stats stats;
        if (CALL(kvmerge_observer_stats, o, c_.one_in(20) ? nullptr : &stats) == KVMERGE_OK && w) {
            volatile float sum = 0; // what it says is there
            for (int i = 0; stats.mass && i < w->params.n_layer * w->params.n_head_kv * w->params.n_cells; i++) {
                sum = sum + stats.mass[i];
            }
            for (int i = 0; stats.entropy && i < w->params.n_layer * w->params.n_head * w->params.n_tokens; i++) {
                sum = sum + stats.entropy[i];
            }
            for (int i = 0; i < stats.n_tokens; i++) {
                sum = sum + float(stats.token_cell[i]);
            }
        }
        kvmerge_cache_info info;
        CALL(kvmerge_observer_cache_info, o, c_.one_in(20) ? nullptr : &info);
        const int layer = layer_number(), head = head_number(), dim = dim_of(o, true);
        kvmerge_key_rotation rotation;
        std::vector<double> frequency(size_t(dim) / 2);
        CALL(kvmerge_rotation, o, layer, c_.one_in(20) ? nullptr : &rotation,
             c_.one_in(4) ? nullptr : frequency.data());
        std::vector<float> mean(static_cast<size_t>(dim)), second(size_t(dim) * size_t(dim));
        CALL(kvmerge_query_moments, o, layer, head, c_.one_in(20) ? nullptr : mean.data(), second.data());
        CALL(kvmerge_query_head_moments, o, layer, head, c_.one_in(20) ? nullptr : mean.data(), second.data());
    }

    int layer_number() { return c_.one_in(10) ? c_.wild_int() : c_.below(2); }
    int head_number() { return c_.one_in(10) ? c_.wild_int() : c_.below(2); }

    // A count of cells and as many numbers; one that no cache has comes with an array of one.
    std::vector<int32_t> some_cells(const Watched * w, int & n) {
        const int most = w && !w->huge ? w->params.n_cells : 4;
        n = c_.below(most + 1);
        if (c_.one_in(12)) {
            n = c_.of<int>({-1, INT_MIN, INT_MAX, 1 << 27, 1 << 20});
        }
        const size_t length = n < 0 || n > most ? 1 : size_t(n);
        std::vector<int32_t> x = c_.ints(length, 0, most - 1, c_.one_in(10));
        if (c_.one_in(2)) { // distinct
            for (size_t i = 0; i < x.size(); i++) {
                x[i] = int32_t(i);
            }
        }
        return x;
    }

    void cells(bool write) {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        int n;
        const std::vector<int32_t> which = some_cells(w, n);
        std::vector<float> k = c_.floats(which.size() * size_t(dim_of(o, true)), write && c_.one_in(4)),
                           v = c_.floats(which.size() * size_t(dim_of(o, false)), false);
        const int32_t * const cells = c_.one_in(30) ? nullptr : which.data();
        float *const keys = c_.one_in(10) ? nullptr : k.data(), *const values = c_.one_in(10) ? nullptr : v.data();
        if (write) {
            CALL(kvmerge_write_cells, o, layer_number(), head_number(), cells, n, keys, values);
        } else {
            CALL(kvmerge_read_cells, o, layer_number(), head_number(), cells, n, keys, values);
        }
    }

    void project() {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        int n;
        const std::vector<int32_t> which = some_cells(w, n), position = c_.ints(which.size(), 0, 5000, true);
        const std::vector<float> weight = c_.floats(size_t(dim_of(o, true)), c_.one_in(8));
        std::vector<float> product(which.size()), length(which.size());
        CALL(kvmerge_project_cells, o, layer_number(), head_number(), which.data(),
             c_.one_in(20) ? nullptr : position.data(), n, c_.one_in(20) ? nullptr : weight.data(), product.data(),
             c_.one_in(20) ? nullptr : length.data());
    }

    void apply() {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        const size_t cells = w && !w->huge ? size_t(w->params.n_cells) : 1;
        const size_t heads = w && !w->huge ? size_t(w->params.n_layer) * size_t(w->params.n_head_kv) : 1;
        const size_t n = cells * heads;
        std::vector<int32_t> target(n), dest(n), position(n), moved(n);
        std::vector<float> weight(n, 1), value_weight = c_.floats(n, c_.one_in(8));
        for (size_t h = 0; h < heads; h++) { // right: pairs merge, some cells are dropped, groups are packed or stay
            const bool pack = c_.one_in(2);
            int32_t next = 0;
            for (size_t i = 0; i < cells; i++) {
                const size_t at = h * cells + i;
                const bool merged = i % 2 == 1 && target[at - 1] >= 0 && c_.one_in(3);
                target[at] = c_.one_in(8) ? -1 : int32_t(merged ? i - 1 : i);
                if (target[at] == int32_t(i)) {
                    dest[at] = pack ? next++ : int32_t(i);
                } else if (target[at] >= 0) {
                    weight[at] = weight[at - 1] = 0.5f;
                }
                position[at] = int32_t(i) * 3;
                moved[at] = c_.one_in(2) ? position[at] : position[at] + 5;
            }
        }
        for (int wrong = c_.one_in(3) ? c_.between(1, 3) : 0; wrong > 0 && n > 0; wrong--) {
            const size_t at = size_t(c_.below(int(n)));
            switch (c_.below(5)) {
            case 0:
                target[at] = c_.one_in(2) ? c_.wild_int() : c_.below(int(cells));
                break;
            case 1:
                dest[at] = c_.one_in(2) ? c_.wild_int() : c_.below(int(cells));
                break;
            case 2:
                position[at] = c_.wild_int();
                break;
            case 3:
                moved[at] = c_.wild_int();
                break;
            default:
                weight[at] = c_.wild_float();
            }
        }
        const kvmerge_moves moves = {
            c_.one_in(40) ? nullptr : target.data(),      c_.one_in(40) ? nullptr : weight.data(),
            c_.one_in(2) ? nullptr : value_weight.data(), c_.one_in(40) ? nullptr : position.data(),
            c_.one_in(40) ? nullptr : dest.data(),        c_.one_in(2) ? nullptr : moved.data(),
            c_.one_in(8) ? c_.wild_int() : c_.below(2)};
        CALL(kvmerge_apply, o, c_.one_in(40) ? nullptr : &moves);
    }

    std::vector<double> rates(size_t n) {
        std::vector<double> x(n, 1.0);
        for (double & e : x) {
            e = std::fabs(double(c_.number()));
        }
        if (c_.one_in(6) && n > 0) {
            x[size_t(c_.below(int(n)))] = c_.of<double>({NAN, INFINITY, -1, 1e308, 1e-320, -0.0});
        }
        return x;
    }

    void spoil(kvmerge_groups_params & p) {
        if (c_.one_in(4)) {
            int32_t * const fields[] = {&p.first, &p.end, &p.operations, &p.largest_group};
            *fields[c_.below(4)] = c_.wild_int();
        }
        p.key_cost = c_.one_in(10) ? double(c_.wild_float()) : p.key_cost;
        p.rate = c_.one_in(40) ? nullptr : p.rate;
    }

    void plan() {
        Watched * w;
        kvmerge_observer * const o = handle(w);
        int n;
        const std::vector<int32_t> which = some_cells(w, n);
        const int length = int(which.size());
        const std::vector<double> rate = rates(which.size());
        const int dim_k = c_.between(1, 40), dim_v = c_.between(1, 40);
        const std::vector<float> k = c_.floats(which.size() * size_t(dim_k), c_.one_in(3)),
                                 v = c_.floats(which.size() * size_t(dim_v), c_.one_in(3));
        std::vector<int32_t> group(which.size());
        const int first = c_.below(length + 1), end = c_.between(first, length);
        kvmerge_groups_params p = {n, dim_k,    dim_v,    first,      end, c_.below(end - first + 1), c_.between(1, 8),
                                   1, k.data(), v.data(), rate.data()};
        spoil(p);
        double cost;
        if (c_.one_in(2)) {
            CALL(kvmerge_plan_cells, o, layer_number(), head_number(), which.data(), c_.one_in(30) ? nullptr : &p,
                 c_.one_in(30) ? nullptr : group.data(), c_.one_in(2) ? nullptr : &cost);
            return;
        }
        p.n = n >= 1 << 20 ? c_.of<int>({INT_MAX, (1 << 27) + 1}) : n; // what is allowed would be beyond the array
        p.head_dim_k = c_.one_in(30) ? c_.of<int>({0, -1, INT_MIN, INT_MAX, 65537}) : dim_k;
        p.keys = c_.one_in(30) ? nullptr : p.keys;
        CALL(kvmerge_plan_groups, &p, c_.one_in(30) ? nullptr : group.data(), c_.one_in(2) ? nullptr : &cost);
    }

    void expect() {
        const int length = c_.between(1, 40);
        const std::vector<double> rate = rates(size_t(length));
        const std::vector<float> prior = c_.floats(size_t(length), c_.one_in(6)), weight = c_.floats(4, c_.one_in(3));
        const std::vector<int32_t> position = c_.ints(size_t(length), 0, 4000, c_.one_in(4));
        std::vector<double> expected(static_cast<size_t>(length));
        const int n = c_.one_in(10) ? c_.of<int>({0, -1, INT_MIN, INT_MAX, (1 << 27) + 1}) : length;
        CALL(kvmerge_expected_attention, n, c_.one_in(30) ? nullptr : rate.data(), prior.data(), position.data(),
             c_.one_in(10) ? c_.wild_int() : 4001, c_.one_in(6) ? double(c_.wild_float()) : 1e-6, weight.data(),
             c_.one_in(30) ? nullptr : expected.data());
    }

    // Rows and their length, or counts that no array has.
    void sizes(int64_t & n_rows, int64_t & n, size_t & length) {
        n_rows = c_.below(4), n = c_.between(1, 70);
        length = size_t(n_rows * n);
        if (c_.one_in(8)) {
            n_rows = c_.of<int64_t>({-1, INT64_MIN, INT64_MAX, int64_t(1) << 41, (int64_t(1) << 62) / 3});
        } else if (c_.one_in(8)) {
            n = c_.of<int64_t>({0, -1, INT64_MIN, INT64_MAX, INT_MAX});
        }
    }
    int n_threads() { return c_.one_in(10) ? c_.wild_int() : c_.between(1, 3); }

    void score() {
        int64_t n_rows, n;
        size_t length;
        sizes(n_rows, n, length);
        const std::vector<float> x = c_.floats(length, c_.one_in(2));
        const std::vector<int32_t> target = c_.ints(4, 0, int32_t(std::clamp<int64_t>(n, 1, 70)) - 1, c_.one_in(8));
        std::vector<double> nll(4);
        CALL(kvmerge_score, c_.one_in(30) ? nullptr : x.data(), n_rows, n, c_.one_in(30) ? nullptr : target.data(),
             n_threads(), nll.data());
    }

    void pack() {
        int64_t n_rows, n;
        size_t length;
        sizes(n_rows, n, length);
        calls++;
        const int64_t bytes = kvmerge_packed_row_bytes(n);
        const std::vector<float> x = c_.floats(length, c_.one_in(3)), y = c_.floats(length, c_.one_in(3));
        std::vector<float> packed(3 * (8 + 2 * 72) / sizeof(float)); // at the end of its memory, for the sanitizer
        if (bytes > 0 && bytes <= 8 + 2 * 72) {
            packed.resize(size_t(n_rows < 0 || n_rows > 3 ? 1 : n_rows) * size_t(bytes) / sizeof(float));
            packed.shrink_to_fit();
        }
        const bool packs = CALL(kvmerge_pack_log_probs, x.data(), n_rows, n, n_threads(),
                                c_.one_in(30) ? nullptr : packed.data()) == KVMERGE_OK;
        if (!packed.empty() && c_.one_in(packs ? 4 : 2)) {
            packed[size_t(c_.below(int(packed.size())))] = c_.wild_float();
        }
        if (!packed.empty() && c_.one_in(4)) {
            packed[size_t(c_.below(std::min(2, int(packed.size()))))] = c_.wild_float(); // scale or minimum
        }
        std::vector<double> kl(4);
        std::vector<uint8_t> same(4);
        CALL(kvmerge_kl_divergence, packed.data(), y.data(), n_rows, n, n_threads(), kl.data(),
             c_.one_in(30) ? nullptr : same.data());
    }

    void rows() {
        int64_t n_rows, n;
        size_t length;
        sizes(n_rows, n, length);
        std::vector<float> p = c_.floats(length, c_.one_in(3)), entropy(4);
        if (c_.one_in(2)) {
            std::for_each(p.begin(), p.end(), [](float & e) { e = std::fabs(e) / 4; });
        }
        CALL(kvmerge_row_entropy, c_.one_in(30) ? nullptr : p.data(), n_rows, n, entropy.data());
        std::vector<int32_t> span(length);
        const int end = c_.one_in(10) ? c_.wild_int() : c_.below(int(std::clamp<int64_t>(n, 0, 70)) + 1);
        CALL(kvmerge_find_spans, p.data(), n_rows, int32_t(n), c_.one_in(10) ? c_.wild_int() : 0, end,
             c_.one_in(8) ? c_.wild_float() : c_.number(), c_.one_in(8) ? c_.wild_int() : c_.between(1, 5),
             c_.one_in(30) ? nullptr : span.data());
    }

    void log() {
        kvmerge_log * log = logs_.empty() || c_.one_in(8) ? nullptr : logs_.back();
        if (c_.one_in(12) && !watched_.empty()) {
            log = reinterpret_cast<kvmerge_log *>(watched_[0].handle);
        }
        std::string text(size_t(c_.byte()) * (c_.one_in(10) ? 100 : 1), 'x');
        switch (c_.below(4)) {
        case 0:
            if (logs_.size() < 3) {
                kvmerge_log * made = nullptr;
                if (CALL(kvmerge_log_create, false, c_.one_in(10) ? nullptr : &made) == KVMERGE_OK) {
                    logs_.push_back(made);
                }
            }
            return;
        case 1:
            if (CALL(kvmerge_log_free, log) == KVMERGE_OK) {
                logs_.pop_back();
                CALL(kvmerge_log_free, log);
                kvmerge_log_callback(4, "late", log);
            }
            return;
        case 2:
            calls++;
            kvmerge_log_callback(c_.wild_int(), c_.one_in(10) ? nullptr : text.c_str(), log);
            return;
        default:
            CALL(kvmerge_log_take, log, c_.one_in(10) ? nullptr : text.data(), c_.one_in(10) ? 0 : text.size());
        }
    }

    void words() {
        calls += 5;
        int32_t flag = c_.wild_int();
        volatile bool aborts = kvmerge_abort_callback(c_.one_in(2) ? nullptr : &flag);
        (void)aborts;
        volatile size_t length = std::strlen(kvmerge_version()) + std::strlen(kvmerge_isa()) +
                                 std::strlen(kvmerge_last_error()) + std::strlen(kvmerge_abi());
        (void)length;
        CALL(kvmerge_device_check, c_.one_in(2) ? 0 : c_.wild_int());
    }

    // llama.cpp's entry points: what they answer is right mostly, and what they are given is a Held.
    static Held & of(const llama_context * context) {
        return *reinterpret_cast<Held *>(const_cast<llama_context *>(context));
    }
    static int32_t llama_decodes(llama_context * context, llama_batch batch) {
        Session & s = *of(context).session;
        volatile int64_t sum = 0; // what it says is there
        for (int32_t i = 0; i < batch.n_tokens; i++) {
            sum =
                sum + int64_t(batch.token[i]) + batch.pos[i] + batch.seq_id[i][0] + batch.n_seq_id[i] + batch.logits[i];
        }
        for (Watched & w : s.watched_) {
            if (!w.huge && (w.handle == of(context).observer ||
                            std::count(w.streams.begin(), w.streams.end(), of(context).observer) > 0)) {
                s.run_graphs(w, w.handle);
            }
        }
        return s.c_.one_in(8) ? s.c_.wild_int() : 0;
    }
    static llama_memory_i * memory_of(const llama_context * context) {
        return reinterpret_cast<llama_memory_i *>(const_cast<llama_context *>(context));
    }
    static Choices & choices_of(llama_memory_i * memory) { return reinterpret_cast<Held *>(memory)->session->c_; }
    static size_t state_of(llama_context * context, uint8_t * to, size_t size, int32_t) {
        std::fill(to, to + size, uint8_t(of(context).session->c_.below(3)));
        return of(context).session->c_.one_in(10) ? 0 : size;
    }

    void hold() {
        Watched * w;
        kvmerge_observer * o = handle(w);
        if (w && !w->streams.empty() && !c_.one_in(8)) {
            o = w->streams[0];
        }
        if (held_.size() >= 3 || (w && w->huge)) {
            return;
        }
        auto made = std::make_unique<Held>(Held{this, o, nullptr, 1, 1, 1, {}});
        kvmerge_cache_params p;
        CALL(kvmerge_cache_defaults, c_.one_in(20) ? nullptr : &p);
        kvmerge_cache_defaults(&p);
        p.n_cells = c_.one_in(5) ? 0 : c_.between(2, 6);
        p.n_block = c_.between(1, 4);
        p.n_prompt_block = c_.below(5);
        p.position_range = p.n_cells > 0 && c_.one_in(3) ? p.n_cells + c_.below(5) : 0;
        p.keep_newest = c_.one_in(4), p.record_fates = c_.below(2), p.pivot_frame = c_.below(2);
        if (c_.one_in(3)) {
            int32_t * const fields[] = {&p.n_cells,        &p.n_block, &p.n_prompt_block,
                                        &p.position_range, &p.sinks,   &p.largest_group};
            *fields[c_.below(6)] = c_.wild_int();
            double * const doubles[] = {&p.mass_decay, &p.recent_share, &p.key_cost};
            *doubles[c_.below(3)] = double(c_.wild_float());
        }
        std::vector<float> calibration = c_.floats(2 * 4 * (6 + 128), c_.one_in(8));
        if (c_.one_in(3)) {
            p.calibration = calibration.data();
            p.calibration_dim = c_.one_in(8) ? c_.of<int>({0, -1, 65537, INT_MIN}) : dim_of(o, true);
        }
        p.llama.decode = reinterpret_cast<void (*)()>(llama_decodes);
        p.llama.synchronize = [](llama_context *) {};
        p.llama.n_ctx_seq = [](const llama_context *) { return 64u; };
        p.llama.n_seq_max = [](const llama_context *) { return 1u << 31; };
        p.llama.n_batch = [](const llama_context *) { return 3u; };
        p.llama.get_logits_ith = [](llama_context *, int32_t) -> float * { return nullptr; };
        p.llama.get_memory = memory_of;
        p.llama.memory_seq_rm = [](llama_memory_i * m, int32_t, int32_t, int32_t) { return !choices_of(m).one_in(9); };
        p.llama.memory_seq_pos_max = [](llama_memory_i * m, int32_t) { // empty while the cache is made
            return reinterpret_cast<Held *>(m)->handle ? choices_of(m).below(3) - 1 : -1;
        };
        p.llama.state_seq_get_size = [](llama_context *, int32_t) { return size_t(72); };
        p.llama.state_seq_get_data = state_of;
        p.llama.state_seq_set_data = [](llama_context * context, const uint8_t *, size_t size, int32_t) {
            return of(context).session->c_.one_in(4) ? 0 : size;
        };
        if (c_.one_in(20)) {
            p.llama.get_memory = nullptr;
        }
        auto * const context = reinterpret_cast<llama_context *>(made.get());
        if (CALL(kvmerge_cache_create, c_.one_in(30) ? nullptr : &p, o, c_.one_in(30) ? nullptr : context,
                 c_.one_in(10) ? c_.wild_int() : 0, c_.one_in(30) ? nullptr : &made->handle) == KVMERGE_OK) {
            if (w) {
                made->n_layer = w->params.n_layer, made->n_head_kv = w->params.n_head_kv;
                made->n_cells = w->params.n_cells;
            }
            held_.push_back(std::move(made));
        }
    }

    void use_cache() {
        if (held_.empty() && !c_.one_in(8)) {
            return hold();
        }
        Held none{this, nullptr, nullptr, 1, 1, 1, {}};
        Held & held = held_.empty() ? none : *held_[size_t(c_.below(int(held_.size())))];
        kvmerge_cache * const cache = c_.one_in(20) ? reinterpret_cast<kvmerge_cache *>(held.observer) : held.handle;
        kvmerge_cache_used used = {};
        CALL(kvmerge_cache_usage, cache, c_.one_in(30) ? nullptr : &used);
        switch (c_.below(12)) {
        case 0:
            if (CALL(kvmerge_cache_free, cache) == KVMERGE_OK) {
                held_.erase(std::find_if(held_.begin(), held_.end(), [&](auto & h) { return h.get() == &held; }));
            }
            return;
        case 1:
            CALL(kvmerge_cache_flush, cache);
            return;
        case 2:
            CALL(kvmerge_cache_pin, cache, c_.one_in(8) ? c_.wild_int() : 2);
            return;
        case 3:
            CALL(kvmerge_cache_clear, cache);
            return;
        case 4: {
            kvmerge_cache_column column;
            if (CALL(kvmerge_cache_columns, cache, layer_number(), head_number(), &column) == KVMERGE_OK) {
                volatile float sum = 0;
                for (int i = 0; i < column.n; i++) {
                    sum = sum + float(column.cell[i] + column.position[i] + column.frame[i] + column.count[i]) +
                          column.mass[i] + column.exposure[i] + column.entropy[i] + column.prior[i];
                }
            }
            std::vector<int32_t> fates(size_t(std::max(used.n_tokens, 0)));
            CALL(kvmerge_cache_fates, cache, layer_number(), head_number(), c_.one_in(8) ? c_.wild_int() : 0,
                 used.n_tokens, fates.data());
            return;
        }
        case 5: {
            size_t size = 0;
            if (CALL(kvmerge_cache_state_size, cache, &size) == KVMERGE_OK) {
                held.saved.resize(size);
                CALL(kvmerge_cache_save, cache, held.saved.data(), c_.one_in(10) ? size - 1 : size);
            }
            return;
        }
        case 6: {
            std::vector<char> state = held.saved;
            if (!state.empty() && c_.one_in(2)) {
                state[size_t(c_.below(int(state.size())))] ^= char(c_.byte());
            }
            CALL(kvmerge_cache_restore, cache, state.data(), state.size());
            return;
        }
        case 7: {
            kvmerge_block_stats stats;
            CALL(kvmerge_cache_take, cache, c_.one_in(8) ? c_.wild_int() : c_.between(1, 3), &stats);
            return;
        }
        case 8:
            CALL(kvmerge_cache_plan, cache);
            CALL(kvmerge_cache_commit, cache);
            return;
        case 9: {
            const int n = std::clamp(used.n_used - used.n_pinned, 0, 64);
            std::vector<int32_t> target = c_.ints(size_t(n), -1, n - 1, c_.one_in(4));
            for (int i = 0; i < n && !c_.one_in(8); i++) { // the newest stay
                target[size_t(i)] = i < n - 3 ? -1 : i;
            }
            const std::vector<float> weight(size_t(n), c_.one_in(8) ? c_.wild_float() : 1);
            for (int32_t pair = 0; pair < std::min(held.n_layer * held.n_head_kv, 8); pair++) {
                CALL(kvmerge_cache_stage, cache, pair / held.n_head_kv, pair % held.n_head_kv,
                     c_.one_in(20) ? c_.wild_int() : n, target.data(), weight.data(),
                     c_.one_in(2) ? nullptr : weight.data());
            }
            CALL(kvmerge_cache_commit, cache);
            return;
        }
        default: {
            const std::vector<int32_t> tokens = c_.ints(size_t(c_.between(1, 6)), 0, 90, c_.one_in(8));
            const float * logits;
            CALL(kvmerge_cache_decode, cache, c_.one_in(30) ? nullptr : tokens.data(),
                 c_.one_in(20) ? -c_.byte() : int32_t(tokens.size()), &logits);
        }
        }
    }

    Choices & c_;
    std::vector<Watched> watched_;
    std::vector<std::unique_ptr<Held>> held_;
    std::vector<kvmerge_observer *> freed_;
    std::vector<kvmerge_log *> logs_;
};

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Choices c(data, size);
    Session(c).run();
    return 0;
}

#if !defined(KVMERGE_LIBFUZZER)
static long input = 0;
static unsigned long seed = 0;
extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak)); // null without a sanitizer

static void say_where() {
    std::fprintf(stderr, "it was input %ld of seed %lu: again with '%lu 1 %ld'\n", input, seed, seed, input);
}

// fuzz_border [SEED [CALLS [FIRST_INPUT]]]
int main(int argc, char ** argv) {
    seed = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : std::random_device()();
    const long wanted = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 100000;
    input = argc > 3 ? std::strtol(argv[3], nullptr, 10) : 0;
    std::printf("seed %lu\n", seed);
    std::fflush(stdout);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(say_where);
    } else {
        for (const int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGILL, SIGBUS}) {
            std::signal(signal, [](int s) {
                say_where();
                std::signal(s, SIG_DFL);
            });
        }
    }
    std::vector<uint8_t> bytes;
    for (; calls < wanted; input++) {
        std::mt19937_64 random(seed * 1000003 + static_cast<unsigned long>(input));
        bytes.resize(500 + random() % 8000);
        for (size_t i = 0; i < bytes.size(); i += 8) {
            const uint64_t word = random();
            std::memcpy(bytes.data() + i, &word, std::min<size_t>(8, bytes.size() - i));
        }
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::printf("%ld calls in %ld inputs\n", calls, input);
    for (const auto & [function, by_status] : answers) {
        std::printf("  %-30s", function.c_str());
        for (const auto & [status, n] : by_status) {
            std::printf(" %d: %ld", status, n);
        }
        std::printf("\n");
    }
}
#endif
