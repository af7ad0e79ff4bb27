// A group of observers in the real llama.cpp: sequences that are decoded in one context, a stream each, against a
// context for each of them.
#include "isa.hpp"
#include "real_llama.hpp"

#include <cstring>
#include <vector>

namespace {

constexpr int CELLS = 256, LAYERS = TinyGguf::LAYERS, KV_HEADS = TinyGguf::KV_HEADS, HEADS = TinyGguf::HEADS,
              DIM = TinyGguf::HEAD_SIZE, BLOCK = 96, SEQUENCES = 3;

struct Settings {
    const char * name;
    bool flash = true;
    ggml_type type = GGML_TYPE_F16;
    int ubatch = 64;
    int observe = KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY | KVMERGE_OBSERVE_QUERIES;
    bool far = false; // in memory that only ggml reaches
};

// Some tokens of a sequence.
struct Piece {
    int sequence, n;
};

// A context of n sequences and what observes them.
struct Context {
    kvmerge_observer * handle = nullptr;
    std::vector<kvmerge_observer *> streams;
    llama_context * context = nullptr;
    std::vector<int> position;
    std::vector<Random> text;               // of each sequence
    std::vector<std::vector<float>> logits; // of each sequence's last token
    int stops = 0, copies = 0;

    Context(llama_model * model, const Settings & s, int n, int first_text)
        : streams(size_t(n)), position(size_t(n)), logits(size_t(n)) {
        kvmerge_observer_params p = {};
        p.n_layer = LAYERS;
        p.n_head = HEADS;
        p.n_head_kv = KV_HEADS;
        p.n_cells = CELLS;
        p.n_tokens = BLOCK;
        p.observe = s.observe;
        p.mass_power = 1;
        p.query_decay = .7f;
        p.ridge = .05f;
        p.n_threads = 2;
        p.ggml = ggml_entries();
        if (s.far) {
            p.ggml.buffer_is_host = [](ggml_backend_buffer *) { return false; };
        }
        if (n > 1) {
            ok(kvmerge_observer_create_group(&p, n, &handle, streams.data()));
        } else {
            ok(kvmerge_observer_create(&p, &handle));
            streams[0] = handle;
        }
        for (int i = 0; i < n; i++) {
            text.emplace_back(unsigned(first_text + i));
            ok(kvmerge_observer_begin(streams[size_t(i)]));
        }
        llama_context_params cp = llama.llama_context_default_params();
        cp.n_ctx = uint32_t(CELLS * n);
        cp.n_batch = 192;
        cp.n_ubatch = uint32_t(s.ubatch);
        cp.n_seq_max = uint32_t(n);
        cp.kv_unified = false;
        cp.n_threads = cp.n_threads_batch = 1;
        cp.flash_attn_type = s.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        cp.type_k = cp.type_v = s.type;
        cp.cb_eval = [](ggml_tensor * node, bool ask, void * self) {
            return static_cast<Context *>(self)->saw(node, ask);
        };
        cp.cb_eval_user_data = this;
        context = llama.llama_init_from_model(model, cp);
        CHECK(context);
    }
    ~Context() {
        llama.llama_free(context);
        ok(kvmerge_observer_free(handle));
    }
    Context(const Context &) = delete;

    bool saw(ggml_tensor * node, bool ask) {
        const bool ours = kvmerge_eval_callback(node, ask, handle);
        stops += ask && ours;
        const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT, softmax = node->op == GGML_OP_SOFT_MAX;
        if (ask && (flash || softmax)) {
            copies += (flash ? node->src[0] : node->src[0]->src[1])->src[0]->op == GGML_OP_CPY;
        }
        return ours;
    }

    // All pieces in one batch.
    void decode(const std::vector<Piece> & pieces) {
        std::vector<llama_token> tokens;
        std::vector<llama_pos> positions;
        std::vector<llama_seq_id> sequences;
        std::vector<int8_t> output;
        for (const Piece & p : pieces) {
            for (int i = 0; i < p.n; i++) {
                tokens.push_back(text[size_t(p.sequence)].integer(0, TinyGguf::VOCABULARY - 1));
                positions.push_back(position[size_t(p.sequence)]++);
                sequences.push_back(p.sequence);
                output.push_back(i == p.n - 1);
            }
        }
        std::vector<int32_t> one(tokens.size(), 1);
        std::vector<llama_seq_id *> ids;
        for (llama_seq_id & id : sequences) {
            ids.push_back(&id);
        }
        const llama_batch batch = {
            int32_t(tokens.size()), tokens.data(), nullptr, positions.data(), one.data(), ids.data(), output.data()};
        CHECK(llama.llama_decode(context, batch) == 0);
        llama.llama_synchronize(context);
        int last = -1;
        for (const Piece & p : pieces) {
            last += p.n;
            const float * const x = llama.llama_get_logits_ith(context, last);
            logits[size_t(p.sequence)].assign(x, x + TinyGguf::VOCABULARY);
        }
    }

    void forget(int sequence, int from) {
        CHECK(llama.llama_memory_seq_rm(llama.llama_get_memory(context), sequence, from, -1));
        position[size_t(sequence)] = from;
    }
};

double furthest = 0; // of logits

void compare(kvmerge_observer * a, kvmerge_observer * b, const Settings & s) {
    kvmerge_block_stats x, y;
    ok(kvmerge_observer_stats(a, &x));
    ok(kvmerge_observer_stats(b, &y));
    CHECK(x.n_tokens == y.n_tokens && x.n_layer_seen == LAYERS && y.n_layer_seen == LAYERS);
    CHECK(std::memcmp(x.token_cell, y.token_cell, size_t(x.n_tokens) * sizeof(int32_t)) == 0);
    for (int i = 0; i < LAYERS * KV_HEADS * CELLS; i++) {
        CHECK_NEAR(x.mass[i], y.mass[i], 1e-4, 1e-3);
    }
    for (int row = 0; row < LAYERS * HEADS; row++) {
        for (int t = 0; t < x.n_tokens; t++) {
            CHECK_NEAR(x.entropy[row * BLOCK + t], y.entropy[row * BLOCK + t], 1e-4, 1e-3);
        }
    }
    for (int i = 0; (s.observe & KVMERGE_OBSERVE_QUERIES) && i < LAYERS * KV_HEADS; i++) {
        std::vector<float> mean[2], second[2];
        for (int j = 0; j < 2; j++) {
            mean[j].resize(DIM), second[j].resize(size_t(DIM) * DIM);
            ok(kvmerge_query_moments(j == 0 ? a : b, i / KV_HEADS, i % KV_HEADS, mean[j].data(), second[j].data()));
        }
        for (int j = 0; j < DIM * DIM; j++) {
            CHECK_NEAR(second[0][size_t(j)], second[1][size_t(j)], 1e-3, 1e-3);
            CHECK_NEAR(mean[0][size_t(j % DIM)], mean[1][size_t(j % DIM)], 1e-3, 1e-3);
        }
    }
    for (int i = 0; (s.observe & KVMERGE_OBSERVE_QUERY_HEADS) && i < LAYERS * HEADS; i++) {
        std::vector<float> mean_a(DIM), mean_b(DIM), second_a(DIM * DIM), second_b(DIM * DIM);
        const int layer = i / HEADS, head = i % HEADS;
        ok(kvmerge_query_head_moments(a, layer, head, mean_a.data(), second_a.data()));
        ok(kvmerge_query_head_moments(b, layer, head, mean_b.data(), second_b.data()));
        for (size_t j = 0; j < size_t(DIM) * DIM; j++) {
            CHECK_NEAR(second_a[j], second_b[j], 1e-3, 1e-3);
            CHECK_NEAR(mean_a[j % DIM], mean_b[j % DIM], 1e-3, 1e-3);
        }
    }
}

void test(llama_model * model, const Settings & s) {
    Context together(model, s, SEQUENCES, 1);
    Context first(model, s, 1, 1), second(model, s, 1, 2), third(model, s, 1, 3);
    Context * const alone[] = {&first, &second, &third};
    furthest = 0;
    const auto decode = [&](const std::vector<Piece> & pieces) {
        together.decode(pieces);
        for (const Piece & p : pieces) {
            alone[p.sequence]->decode({{0, p.n}});
            for (size_t i = 0; i < TinyGguf::VOCABULARY; i++) {
                const double a = together.logits[size_t(p.sequence)][i], b = alone[p.sequence]->logits[0][i];
                CHECK_NEAR(a, b, 1e-3, 1e-3);
                furthest = std::max(furthest, std::fabs(a - b));
            }
        }
    };
    const auto end_block = [&](int sequence) {
        compare(together.streams[size_t(sequence)], alone[sequence]->handle, s);
        ok(kvmerge_observer_begin(together.streams[size_t(sequence)]));
        ok(kvmerge_observer_begin(alone[sequence]->handle));
    };
    decode({{0, 30}, {1, 20}, {2, 25}}); // llama.cpp makes several ubatches of it
    end_block(1);
    for (int i = 0; i < 5; i++) { // a graph that is used again
        decode({{0, 1}, {1, 1}, {2, 1}});
    }
    end_block(0);
    for (int i = 0; i < 3; i++) { // with a gap, in two ubatches
        decode({{0, 1}, {2, 1}});
    }
    end_block(2);
    decode({{1, 1}, {2, 1}});
    together.forget(1, 10); // cells that its queries saw are written again: its statistics are due, nobody else's
    alone[1]->forget(0, 10);
    decode({{0, 4}, {1, 12}, {2, 1}});
    decode({{1, 1}});
    for (int i = 0; i < SEQUENCES; i++) {
        end_block(i);
    }
    const int32_t cells[] = {0, 3, 9};
    for (int i = 0; i < SEQUENCES; i++) { // the slice of each
        float keys[2][3 * DIM], values[2][3 * DIM];
        ok(kvmerge_read_cells(together.streams[size_t(i)], 1, 1, cells, 3, keys[0], values[0]));
        ok(kvmerge_read_cells(alone[i]->handle, 1, 1, cells, 3, keys[1], values[1]));
        for (int j = 0; j < 3 * DIM; j++) {
            CHECK_NEAR(keys[0][j], keys[1][j], 2e-2, 2e-2);
            CHECK_NEAR(values[0][j], values[1][j], 2e-2, 2e-2);
        }
    }
    const bool captures =
        !(s.observe & KVMERGE_OBSERVE_STOP) && (s.flash || s.far || (s.observe & KVMERGE_OBSERVE_CAPTURE));
    CHECK((together.copies > 0) == captures && (together.stops > 0) == !captures);
    std::printf("%-20s logits of a sequence together and alone: at most %g apart\n", s.name, furthest);
}

// A cache of each stream: to the bit what a cache of a context of its own does, when it is decoded by itself.
void test_caches(llama_model * model) {
    const Settings s = {"caches"};
    Context together(model, s, 2, 1), alone(model, s, 1, 2);
    kvmerge_cache_params p;
    ok(kvmerge_cache_defaults(&p));
    p.n_cells = 40;
    p.n_block = 16;
    p.llama = cache_entries();
    kvmerge_cache *first = nullptr, *second = nullptr, *own = nullptr;
    CHECK(kvmerge_cache_create(&p, together.handle, together.context, 0, &first) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_cache_create(&p, together.streams[0], together.context, 1, &first) == KVMERGE_E_ARGUMENT);
    CHECK(std::strstr(kvmerge_last_error(), "seq_id is not the observer's stream"));
    CHECK(kvmerge_cache_create(&p, alone.handle, alone.context, 1, &own) == KVMERGE_E_ARGUMENT);
    CHECK(std::strstr(kvmerge_last_error(), "seq_id is 1, where llama_n_seq_max is 1"));
    ok(kvmerge_cache_create(&p, together.streams[0], together.context, 0, &first));
    ok(kvmerge_cache_create(&p, together.streams[1], together.context, 1, &second));
    ok(kvmerge_cache_create(&p, alone.handle, alone.context, 0, &own));
    Random random(4);
    for (int piece = 0; piece < 30; piece++) {
        std::vector<llama_token> tokens(size_t(random.integer(1, 16))), other(size_t(random.integer(1, 16)));
        for (llama_token & t : tokens) {
            t = random.integer(0, TinyGguf::VOCABULARY - 1);
        }
        for (llama_token & t : other) {
            t = random.integer(0, TinyGguf::VOCABULARY - 1);
        }
        const float *a, *b;
        ok(kvmerge_cache_decode(first, other.data(), int32_t(other.size()), nullptr));
        ok(kvmerge_cache_decode(second, tokens.data(), int32_t(tokens.size()), &a));
        ok(kvmerge_cache_decode(own, tokens.data(), int32_t(tokens.size()), &b));
        CHECK(std::memcmp(a, b, TinyGguf::VOCABULARY * sizeof(float)) == 0);
        if (piece == 20) { // one sequence is freed, and the other goes on
            ok(kvmerge_cache_clear(first));
        }
    }
    for (kvmerge_cache * cache : {first, second, own}) {
        ok(kvmerge_cache_free(cache));
    }
}

} // namespace

int main(int argc, char ** argv) {
    llama_model * const model = tiny_model_for(argc, argv);
    constexpr int ALL = KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY | KVMERGE_OBSERVE_QUERIES;
    constexpr int BY_HEAD = ALL | KVMERGE_OBSERVE_QUERY_HEADS;
    const Settings settings[] = {{"F16"},
                                 {"moments by head", true, GGML_TYPE_F16, 16, BY_HEAD},
                                 {"moments by head, stop", true, GGML_TYPE_F16, 64, BY_HEAD | KVMERGE_OBSERVE_STOP},
                                 {"moments by head, elsewhere", true, GGML_TYPE_Q8_0, 64, BY_HEAD, true},
                                 {"small ubatches", true, GGML_TYPE_F16, 16},
                                 {"F32", true, GGML_TYPE_F32, 32},
                                 {"Q8_0", true, GGML_TYPE_Q8_0},
                                 {"stop", true, GGML_TYPE_F16, 64, ALL | KVMERGE_OBSERVE_STOP},
                                 {"no flash attention", false, GGML_TYPE_F16, 64},
                                 {"no flash, captured", false, GGML_TYPE_F16, 64, ALL | KVMERGE_OBSERVE_CAPTURE},
                                 {"no flash, stop", false, GGML_TYPE_F16, 64, ALL | KVMERGE_OBSERVE_STOP},
                                 {"elsewhere", true, GGML_TYPE_F16, 16, ALL, true},
                                 {"no flash, elsewhere", false, GGML_TYPE_F16, 64, ALL, true}};
    for (const Settings & s : settings) {
        test(model, s);
    }
    test_caches(model);
    llama.llama_model_free(model);
    std::printf("ok\n");
}
