// A group of observers on graphs made by hand: each stream's observer says and does, to the bit, what an observer of a
// context with that sequence alone does.
#include "isa.hpp"
#include "observer.hpp"
#include "stream_graph.hpp"

#include <cstring>
#include <thread>

namespace {

constexpr int CELLS = StreamGraph::CELLS, DIM = StreamGraph::DIM, HEADS = StreamGraph::HEADS,
              LAYERS = StreamGraph::LAYERS, BLOCK = 24;

struct Settings {
    const char * name;
    bool flash;
    int observe, bias, mass_queries;
};

kvmerge_observer_params params_of(const Settings & s) {
    kvmerge_observer_params p = params_for(s.observe, s.bias);
    p.n_layer = LAYERS;
    p.n_cells = CELLS;
    p.n_tokens = BLOCK;
    p.mass_queries = s.mass_queries;
    return p;
}

bool says(const char * what) {
    if (!std::strstr(kvmerge_last_error(), what)) {
        std::printf("%s\n", kvmerge_last_error());
        return false;
    }
    return true;
}

// A sequence alone in a context, and what comes to it.
struct Alone {
    StreamGraph graph;
    kvmerge_observer * observer = nullptr;
    Random random;
    int seen = 0, in_block = 0;

    Alone(const Settings & s, int stream) : graph(1, s.flash), random(unsigned(100 + stream)) {
        observer = make(params_of(s));
    }
    ~Alone() { CHECK(kvmerge_observer_free(observer) == KVMERGE_OK); }
    Alone(const Alone &) = delete;

    StreamTokens next(int n) {
        StreamTokens t;
        if (seen + n > CELLS) { // older cells are used again
            seen = random.integer(0, CELLS - n - 1);
        }
        t.seen = seen;
        for (int i = 0; i < n; i++) {
            t.cells.push_back(seen++);
        }
        in_block += n;
        for (int layer = 0; layer < LAYERS; layer++) {
            t.q.push_back(random.normals(size_t(n) * HEADS * DIM));
            t.k.push_back(random.normals(size_t(n) * DIM));
            t.v.push_back(random.normals(size_t(n) * DIM));
            t.p.push_back(random.normals(size_t(n) * HEADS * CELLS));
            std::for_each(t.p.back().begin(), t.p.back().end(), [](float & x) { x = std::fabs(x); });
        }
        return t;
    }
};

struct Group {
    StreamGraph graph;
    kvmerge_observer * handle = nullptr;
    std::vector<kvmerge_observer *> streams;

    Group(const Settings & s, int n) : graph(n, s.flash), streams(size_t(n)) {
        const kvmerge_observer_params p = params_of(s);
        CHECK(kvmerge_observer_create_group(&p, n, &handle, streams.data()) == KVMERGE_OK);
        for (kvmerge_observer * o : streams) {
            CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        }
    }
    ~Group() { CHECK(kvmerge_observer_free(handle) == KVMERGE_OK); }
    Group(const Group &) = delete;
};

template <class T>
void same(const T * a, const T * b, size_t n) {
    CHECK(!a == !b && (!a || std::memcmp(a, b, n * sizeof(T)) == 0));
}

void same_statistics(kvmerge_observer * a, kvmerge_observer * b, const Settings & s, bool decoded) {
    kvmerge_block_stats x, y;
    CHECK(kvmerge_observer_stats(a, &x) == KVMERGE_OK && kvmerge_observer_stats(b, &y) == KVMERGE_OK);
    CHECK(x.n_tokens == y.n_tokens && x.n_layer_seen == y.n_layer_seen);
    same(x.token_cell, y.token_cell, size_t(x.n_tokens));
    same(x.mass, y.mass, size_t(LAYERS) * CELLS);
    for (int row = 0; x.entropy && row < LAYERS * HEADS; row++) { // behind the block there may be an earlier one's
        same(x.entropy + row * BLOCK, y.entropy + row * BLOCK, size_t(x.n_tokens));
    }
    for (int layer = 0; decoded && (s.observe & KVMERGE_OBSERVE_QUERIES) && layer < LAYERS; layer++) {
        float mean[2][DIM], second[2][DIM * DIM];
        CHECK(kvmerge_query_moments(a, layer, 0, mean[0], second[0]) == KVMERGE_OK);
        CHECK(kvmerge_query_moments(b, layer, 0, mean[1], second[1]) == KVMERGE_OK);
        same(mean[0], mean[1], DIM);
        same(second[0], second[1], DIM * DIM);
    }
}

// The cells of all streams, as they lie.
void same_cells(Group & group, std::vector<std::unique_ptr<Alone>> & alone) {
    for (size_t s = 0; s < alone.size(); s++) {
        for (int layer = 0; layer < LAYERS; layer++) {
            same(group.graph.keys(layer).data() + s * DIM * CELLS, alone[s]->graph.keys(layer).data(), DIM * CELLS);
            same(group.graph.values(layer).data() + s * DIM * CELLS, alone[s]->graph.values(layer).data(), DIM * CELLS);
        }
    }
}

// Merges two cells, drops one and moves one, in both.
void rewrite(kvmerge_observer * a, Alone & alone) {
    const int seen = alone.seen;
    if (seen < 4) {
        return;
    }
    std::vector<int32_t> target(LAYERS * CELLS, -1), position(LAYERS * CELLS), dest(LAYERS * CELLS);
    std::vector<float> weight(LAYERS * CELLS, 1);
    const int merged = alone.random.integer(0, seen - 3);
    for (int i = 0; i < LAYERS * CELLS; i++) {
        const int c = i % CELLS;
        position[size_t(i)] = c;
        if (c < seen && c != merged + 2) {
            target[size_t(i)] = c == merged + 1 ? merged : c;
            dest[size_t(i)] = c < merged + 2 ? c : c - 1;
            weight[size_t(i)] = c == merged ? .25f : c == merged + 1 ? .75f : 1;
        }
    }
    const kvmerge_moves moves = {target.data(), weight.data(), nullptr, position.data(), dest.data(), nullptr, 1};
    for (kvmerge_observer * o : {a, alone.observer}) {
        CHECK(kvmerge_apply(o, &moves) == KVMERGE_OK || says("no queries observed yet") || says("no attention seen"));
    }
}

void test_alone_and_together(const Settings & s, int n) {
    Group group(s, n);
    std::vector<std::unique_ptr<Alone>> alone;
    for (int i = 0; i < n; i++) {
        alone.push_back(std::make_unique<Alone>(s, i));
    }
    Random random{unsigned(n)};
    std::vector<bool> decoded(static_cast<size_t>(n));
    const auto end_block = [&](int i) {
        same_statistics(group.streams[size_t(i)], alone[size_t(i)]->observer, s, decoded[size_t(i)]);
        CHECK(kvmerge_observer_begin(group.streams[size_t(i)]) == KVMERGE_OK);
        CHECK(kvmerge_observer_begin(alone[size_t(i)]->observer) == KVMERGE_OK);
        alone[size_t(i)]->in_block = 0;
    };
    for (int step = 0; step < 150; step++) {
        const int first = random.integer(0, n - 1), parts = random.integer(1, n - first);
        const int tokens = random.integer(1, 3);
        std::vector<StreamTokens> ubatch;
        for (int i = first; i < first + parts; i++) {
            if (alone[size_t(i)]->in_block + tokens > BLOCK) {
                end_block(i);
            }
            ubatch.push_back(alone[size_t(i)]->next(tokens));
            decoded[size_t(i)] = true;
        }
        group.graph.decode(group.handle, first, ubatch);
        for (int i = first; i < first + parts; i++) {
            alone[size_t(i)]->graph.decode(alone[size_t(i)]->observer, 0, {ubatch[size_t(i - first)]});
        }
        same_cells(group, alone);
        const int one = random.integer(0, n - 1); // at the end of its block, or in the middle
        if (random.integer(0, 3) == 0 && decoded[size_t(one)]) {
            if (random.integer(0, 1) == 0) {
                same_statistics(group.streams[size_t(one)], alone[size_t(one)]->observer, s, true);
            }
            rewrite(group.streams[size_t(one)], *alone[size_t(one)]);
            same_cells(group, alone);
            if (random.integer(0, 1) == 0) {
                end_block(one);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        end_block(i);
        kvmerge_cache_info info, info_alone;
        if (decoded[size_t(i)]) {
            CHECK(kvmerge_observer_cache_info(group.streams[size_t(i)], &info) == KVMERGE_OK);
            CHECK(kvmerge_observer_cache_info(alone[size_t(i)]->observer, &info_alone) == KVMERGE_OK);
            CHECK(info.bytes == info_alone.bytes && info.n_cells == info_alone.n_cells);
        }
    }
    const bool captures = (s.flash || !on_host || (s.observe & KVMERGE_OBSERVE_CAPTURE)) &&
                          !(s.observe & KVMERGE_OBSERVE_STOP) && s.bias != KVMERGE_BIAS_EXACT;
    CHECK((group.graph.copies > 0) == captures && (group.graph.stops > 0) == !captures);
}

// What one stream does wrong is its own error.
void test_errors_of_one() {
    const Settings s = {"", true, KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY, KVMERGE_BIAS_NONE, 0};
    Group group(s, 3);
    std::vector<std::unique_ptr<Alone>> alone;
    for (int i = 0; i < 3; i++) {
        alone.push_back(std::make_unique<Alone>(s, i));
    }
    const auto decode = [&] {
        std::vector<StreamTokens> ubatch;
        for (auto & one : alone) {
            ubatch.push_back(one->next(2));
        }
        group.graph.decode(group.handle, 0, ubatch);
        for (size_t i = 0; i < 3; i++) {
            alone[i]->graph.decode(alone[i]->observer, 0, {ubatch[i]});
        }
    };
    for (int i = 0; i < BLOCK / 2; i++) {
        decode();
    }
    kvmerge_block_stats stats;
    for (size_t i : {0, 2}) { // 1 does not end its block
        same_statistics(group.streams[i], alone[i]->observer, s, true);
        CHECK(kvmerge_observer_begin(group.streams[i]) == KVMERGE_OK);
        CHECK(kvmerge_observer_begin(alone[i]->observer) == KVMERGE_OK);
    }
    decode();
    CHECK(kvmerge_observer_stats(group.streams[1], &stats) == KVMERGE_E_ARGUMENT);
    CHECK(says("more tokens in a block than the observer was made for"));
    for (size_t i : {0, 2}) {
        same_statistics(group.streams[i], alone[i]->observer, s, true);
    }
    for (int i = 0; i < 3; i++) { // and it goes on
        CHECK(kvmerge_observer_begin(group.streams[size_t(i)]) == KVMERGE_OK);
        CHECK(kvmerge_observer_begin(alone[size_t(i)]->observer) == KVMERGE_OK);
    }
    decode();
    for (size_t i : {0, 1, 2}) {
        same_statistics(group.streams[i], alone[i]->observer, s, true);
    }
}

// A stream that a thread is inside a call with misses the decode; the others do not.
void test_threads() {
    const Settings s = {"", true, KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE, 0};
    Group group(s, 3);
    std::vector<std::unique_ptr<Alone>> alone;
    std::vector<StreamTokens> ubatch;
    for (int i = 0; i < 3; i++) {
        alone.push_back(std::make_unique<Alone>(s, i));
        ubatch.push_back(alone.back()->next(2));
        alone.back()->graph.decode(alone.back()->observer, 0, {ubatch.back()});
    }
    CHECK(kvmerge::on_observer("test", group.streams[1], kvmerge::Access::SHARED, [&](kvmerge_observer &) {
              group.graph.decode(group.handle, 0, ubatch);
              CHECK(kvmerge_observer_free(group.handle) == KVMERGE_E_STATE && says("another thread is inside"));
          }) == KVMERGE_OK);
    kvmerge_block_stats stats;
    CHECK(kvmerge_observer_stats(group.streams[1], &stats) == KVMERGE_E_STATE);
    CHECK(says("another thread was inside a call with this observer while llama.cpp decoded"));
    for (size_t i : {0, 2}) {
        same_statistics(group.streams[i], alone[i]->observer, s, true);
    }
    // Different streams on different threads at once.
    for (int i = 0; i < 3; i++) {
        CHECK(kvmerge_observer_begin(group.streams[size_t(i)]) == KVMERGE_OK);
        CHECK(kvmerge_observer_begin(alone[size_t(i)]->observer) == KVMERGE_OK);
        ubatch[size_t(i)] = alone[size_t(i)]->next(3);
        alone[size_t(i)]->graph.decode(alone[size_t(i)]->observer, 0, {ubatch[size_t(i)]});
    }
    group.graph.decode(group.handle, 0, ubatch);
    std::vector<std::thread> threads;
    for (kvmerge_observer * o : group.streams) {
        threads.emplace_back([o] {
            kvmerge_block_stats mine;
            CHECK(kvmerge_observer_stats(o, &mine) == KVMERGE_OK && mine.n_tokens == 3);
        });
    }
    std::for_each(threads.begin(), threads.end(), [](std::thread & t) { t.join(); });
    for (size_t i : {0, 2}) {
        same_statistics(group.streams[i], alone[i]->observer, s, true);
    }
}

// Whoever gives llama.cpp a stream's handle in place of its group's is told nothing wrong, and nothing ends.
void test_a_stream_in_place_of_its_group() {
    const Settings s = {"", true, KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_QUERIES, KVMERGE_BIAS_NONE, 0};
    Group group(s, 2);
    Alone first(s, 0), second(s, 1);
    group.graph.decode(group.handle, 0, {first.next(2), second.next(2)});
    group.graph.decode(group.handle, 0, {first.next(2)}); // what both shared the copies in is let go
    kvmerge_block_stats before, stats;
    CHECK(kvmerge_observer_stats(group.streams[1], &before) == KVMERGE_OK && before.n_tokens == 2);
    group.graph.decode(group.streams[1], 0, {first.next(2), second.next(2)});
    const kvmerge_status status = kvmerge_observer_stats(group.streams[1], &stats);
    CHECK(status == KVMERGE_OK || status == KVMERGE_E_STATE || status == KVMERGE_E_UNSUPPORTED);
    CHECK(kvmerge_observer_stats(group.streams[0], &stats) == KVMERGE_OK && stats.n_tokens == 4);
}

void test_refusals() {
    const Settings s = {"", true, KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE, 0};
    kvmerge_observer_params p = params_of(s);
    kvmerge_observer *group = nullptr, *streams[4] = {};
    kvmerge_block_stats stats;
    CHECK(kvmerge_observer_create_group(nullptr, 2, &group, streams) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_create_group(&p, 2, nullptr, streams) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_observer_create_group(&p, 2, &group, nullptr) == KVMERGE_E_ARGUMENT);
    for (const int n : {0, -1, 257, INT32_MAX}) {
        CHECK(kvmerge_observer_create_group(&p, n, &group, streams) == KVMERGE_E_ARGUMENT && says("1..256"));
    }
    p.n_head_kv = 0;
    CHECK(kvmerge_observer_create_group(&p, 2, &group, streams) == KVMERGE_E_ARGUMENT && !group && !streams[0]);
    p = params_of(s);
    CHECK(kvmerge_observer_create_group(&p, 2, &group, streams) == KVMERGE_OK);
    for (const kvmerge_status status :
         {kvmerge_observer_begin(group), kvmerge_observer_stats(group, &stats), kvmerge_apply(group, nullptr)}) {
        CHECK(status == KVMERGE_E_ARGUMENT && says("this handle is a group's"));
    }
    CHECK(kvmerge_observer_free(streams[1]) == KVMERGE_E_ARGUMENT && says("free its group"));

    Alone one(s, 0); // a context of one sequence, and one of three
    const StreamTokens tokens = one.next(2);
    one.graph.decode(group, 0, {tokens});
    CHECK(kvmerge_observer_stats(streams[0], &stats) == KVMERGE_E_UNSUPPORTED && says("n_seq_max of as many"));
    CHECK(kvmerge_observer_begin(streams[0]) == KVMERGE_OK && kvmerge_observer_begin(streams[1]) == KVMERGE_OK);
    StreamGraph three(3, true), two(2, true), other(2, true);
    three.decode(group, 0, {tokens});
    CHECK(kvmerge_observer_stats(streams[1], &stats) == KVMERGE_E_UNSUPPORTED && says("K cells of 3 streams"));
    three.decode(one.observer, 0, {tokens});
    CHECK(kvmerge_observer_stats(one.observer, &stats) == KVMERGE_E_UNSUPPORTED &&
          says("use one sequence, or kvmerge_observer_create_group"));
    CHECK(kvmerge_observer_begin(streams[0]) == KVMERGE_OK && kvmerge_observer_begin(streams[1]) == KVMERGE_OK);

    two.decode(group, 0, {tokens}); // then another context: of no stream any more, for good
    CHECK(kvmerge_observer_stats(streams[0], &stats) == KVMERGE_OK && stats.n_tokens == 2);
    CHECK(kvmerge_observer_stats(streams[1], &stats) == KVMERGE_OK && stats.n_tokens == 0);
    for (int round = 0; round < 2; round++) {
        (round == 0 ? other : two).decode(group, 1, {tokens});
        for (kvmerge_observer * o : {streams[0], streams[1]}) {
            CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_E_STATE && says("another llama_context's cache"));
            CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        }
    }
    CHECK(kvmerge_observer_free(group) == KVMERGE_OK);
    CHECK(kvmerge_observer_free(group) == KVMERGE_E_ARGUMENT &&
          kvmerge_observer_begin(streams[0]) == KVMERGE_E_ARGUMENT);
}

} // namespace

int main() {
    skip_without_isa();
    constexpr int MASS = KVMERGE_OBSERVE_MASS, ENTROPY = KVMERGE_OBSERVE_ENTROPY, QUERIES = KVMERGE_OBSERVE_QUERIES,
                  STOP = KVMERGE_OBSERVE_STOP, CAPTURE = KVMERGE_OBSERVE_CAPTURE;
    const Settings settings[] = {
        {"captured", true, MASS | ENTROPY | QUERIES, KVMERGE_BIAS_FOLDED, 0},
        {"captured, a window", true, MASS | ENTROPY, KVMERGE_BIAS_NONE, 2},
        {"moments alone", true, QUERIES, KVMERGE_BIAS_FOLDED, 0},
        {"stops at flash attention", true, MASS | ENTROPY | QUERIES | STOP, KVMERGE_BIAS_FOLDED, 0},
        {"captured at the softmax", false, MASS | ENTROPY | QUERIES | CAPTURE, KVMERGE_BIAS_FOLDED, 0},
        {"moments alone, without flash attention", false, QUERIES | CAPTURE, KVMERGE_BIAS_FOLDED, 0},
        {"the softmax", false, MASS | ENTROPY | QUERIES, KVMERGE_BIAS_FOLDED, 0},
        {"stops at the softmax", false, MASS | ENTROPY | QUERIES | STOP, KVMERGE_BIAS_FOLDED, 0},
        {"stops at the softmax, a window", false, MASS | ENTROPY | STOP, KVMERGE_BIAS_NONE, 2},
        {"an exact bias", false, MASS, KVMERGE_BIAS_EXACT, 0},
    };
    for (const bool host : {true, false}) {
        on_host = host;
        for (const Settings & s : settings) {
            for (int n = 1; n <= 4; n++) {
                std::printf("%s, %d streams, memory %s\n", s.name, n, host ? "of the host" : "elsewhere");
                test_alone_and_together(s, n);
            }
        }
    }
    CHECK(backend_buffers == 0);
    for (const bool host : {false, true}) {
        on_host = host;
        test_threads();
    }
    CHECK(backend_buffers == 0);
    test_errors_of_one();
    test_a_stream_in_place_of_its_group();
    test_refusals();
    std::printf("ok\n");
}
