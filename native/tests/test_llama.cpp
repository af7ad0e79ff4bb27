// The library in the real llama.cpp, whose libraries lie in the folder that is given: a tiny model is decoded, its
// cells are planned over and rewritten, and then compared with what the plans say in double precision.
#include "check.hpp"
#include "isa.hpp"
#include "kvmerge.h"
#include "real_llama.hpp"

#include <cmath>
#include <vector>

namespace {

constexpr int CELLS = 256, PROMPT = 48, GONE = 16, LEFT = PROMPT - GONE, SINKS = 4, NEWEST = 8, MORE = 8;
constexpr int HEADS = TinyGguf::KV_HEADS, GROUP = TinyGguf::HEADS / HEADS, DIM = TinyGguf::HEAD_SIZE;

struct Case {
    const char * name;
    bool flash;
    ggml_type keys, values;
    double tolerance; // of a cell's elements, which are about 1
    double kl = .01;  // how far the divergence may be from that of exact cells
};

// A context, and the observer of it.
struct Run {
    kvmerge_observer * observer = nullptr;
    llama_context * context = nullptr;
    std::vector<float> mass; // [layer][KV head][cell], of the prompt

    Run(llama_model * model, const Case & c) {
        kvmerge_observer_params p = {};
        p.n_layer = TinyGguf::LAYERS;
        p.n_head = TinyGguf::HEADS;
        p.n_head_kv = HEADS;
        p.n_cells = CELLS;
        p.n_tokens = PROMPT;
        p.observe = KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_ENTROPY;
        p.mass_power = 1;
        p.query_decay = .7f;
        p.ridge = .05f;
        p.n_threads = 2;
        p.ggml = ggml_entries();
        ok(kvmerge_observer_create(&p, &observer));
        llama_context_params cp = llama.llama_context_default_params();
        cp.n_ctx = CELLS;
        cp.n_batch = cp.n_ubatch = 64;
        cp.n_threads = cp.n_threads_batch = 1; // more would spin while they wait, on a machine that is busy
        cp.flash_attn_type = c.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        cp.type_k = c.keys, cp.type_v = c.values;
        cp.cb_eval = kvmerge_eval_callback;
        cp.cb_eval_user_data = observer;
        context = llama.llama_init_from_model(model, cp);
        CHECK(context);
    }
    Run(const Run &) = delete;
    ~Run() {
        llama.llama_free(context);
        kvmerge_observer_free(observer);
    }

    void decode(llama_token * tokens, int n) {
        ok(kvmerge_observer_begin(observer));
        CHECK(llama.llama_decode(context, llama.llama_batch_get_one(tokens, n)) == 0);
        llama.llama_synchronize(context);
    }

    void decode_prompt(llama_token * tokens) {
        decode(tokens, PROMPT);
        kvmerge_block_stats stats;
        ok(kvmerge_observer_stats(observer, &stats));
        CHECK(stats.n_tokens == PROMPT && stats.n_layer_seen == TinyGguf::LAYERS);
        mass.assign(stats.mass, stats.mass + TinyGguf::LAYERS * HEADS * CELLS);
        for (int i = 0; i < TinyGguf::LAYERS * HEADS; i++) { // each query gives away 1
            double sum = 0;
            for (int c = 0; c < CELLS; c++) {
                sum += mass[size_t(i) * CELLS + c];
                CHECK(c < PROMPT || mass[size_t(i) * CELLS + c] == 0);
            }
            CHECK_NEAR(sum, PROMPT * GROUP, 0, 2e-3);
        }
        for (int i = 0; i < TinyGguf::LAYERS * TinyGguf::HEADS * PROMPT; i++) {
            CHECK(stats.entropy[i] >= 0 && stats.entropy[i] <= 1);
            CHECK(i % PROMPT != 0 || stats.entropy[i] == 0); // sees itself
        }
        for (int i = 0; i < PROMPT; i++) {
            CHECK(stats.token_cell[i] == i);
        }
    }

    std::vector<float> logits_after(llama_token token) {
        decode(&token, 1);
        const float * const x = llama.llama_get_logits_ith(context, -1);
        CHECK(x);
        return std::vector<float>(x, x + TinyGguf::VOCABULARY);
    }
};

// [n][DIM] of the cells of a head.
struct Vectors {
    std::vector<float> keys, values;
};

Vectors read(kvmerge_observer * observer, int layer, int head, const std::vector<int32_t> & cells) {
    Vectors v{std::vector<float>(cells.size() * DIM), std::vector<float>(cells.size() * DIM)};
    ok(kvmerge_read_cells(observer, layer, head, cells.data(), int32_t(cells.size()), v.keys.data(), v.values.data()));
    return v;
}

// Compares the prompt's cells with what the plans make of the cells before.
void compress(Run & run, const Case & c) {
    std::vector<int32_t> cells(PROMPT);
    for (int i = 0; i < PROMPT; i++) {
        cells[i] = i;
    }
    const size_t all = size_t(TinyGguf::LAYERS) * HEADS * CELLS;
    std::vector<int32_t> target(all, -1), position(all, 0), dest(all, 0);
    std::vector<float> weight(all, 0.0f);
    std::vector<Vectors> before;
    for (int head = 0; head < TinyGguf::LAYERS * HEADS; head++) {
        before.push_back(read(run.observer, head / HEADS, head % HEADS, cells));
        const float * const mass = run.mass.data() + size_t(head) * CELLS;
        std::vector<double> rate(mass, mass + PROMPT);
        std::vector<int32_t> group(PROMPT);
        kvmerge_groups_params p = {};
        p.n = PROMPT;
        p.first = SINKS;
        p.end = PROMPT - NEWEST;
        p.operations = GONE;
        p.largest_group = 4;
        p.key_cost = .05;
        p.rate = rate.data();
        double cost = -1;
        ok(kvmerge_plan_cells(run.observer, head / HEADS, head % HEADS, cells.data(), &p, group.data(), &cost));
        CHECK(std::isfinite(cost) && cost > 0);
        int32_t * const t = target.data() + size_t(head) * CELLS;
        int next = 0;
        for (int i = 0; i < PROMPT; i++) {
            t[i] = group[i];
            position[size_t(head) * CELLS + i] = i;
            double sum = 0;
            for (int j = 0; j < PROMPT; j++) {
                sum += group[j] == group[i] ? rate[j] : 0;
            }
            weight[size_t(head) * CELLS + i] = group[i] < 0 ? 0.0f : float(rate[i] / sum);
            if (group[i] == i) { // those of the newest token stay in its own cell, the others go to the first
                dest[size_t(head) * CELLS + i] = i == PROMPT - 1 ? i : next++;
            }
        }
        CHECK(next == LEFT - 1);
    }
    kvmerge_moves moves = {};
    moves.target = target.data();
    moves.weight = weight.data();
    moves.position = position.data();
    moves.dest = dest.data();
    moves.pivot_frame = 1;
    ok(kvmerge_apply(run.observer, &moves));

    int merged = 0;
    for (int head = 0; head < TinyGguf::LAYERS * HEADS; head++) {
        const Vectors after = read(run.observer, head / HEADS, head % HEADS, cells);
        kvmerge_key_rotation rotation;
        double frequency[DIM / 2];
        ok(kvmerge_rotation(run.observer, head / HEADS, &rotation, frequency));
        CHECK(rotation.n_rot == DIM && !rotation.neox);
        for (int pivot = 0; pivot < PROMPT; pivot++) {
            if (target[size_t(head) * CELLS + pivot] != pivot) {
                continue;
            }
            double key[DIM] = {}, value[DIM] = {};
            int members = 0;
            for (int i = 0; i < PROMPT; i++) {
                if (target[size_t(head) * CELLS + i] != pivot) {
                    continue;
                }
                members++;
                const double w = weight[size_t(head) * CELLS + i];
                const float * const k = before[head].keys.data() + size_t(i) * DIM;
                const float * const v = before[head].values.data() + size_t(i) * DIM;
                for (int j = 0; j < DIM; j += 2) {
                    const double angle = (pivot - i) * frequency[j / 2];
                    const double cosine = std::cos(angle), sine = std::sin(angle);
                    key[j] += w * (k[j] * cosine - k[j + 1] * sine);
                    key[j + 1] += w * (k[j] * sine + k[j + 1] * cosine);
                    value[j] += w * v[j];
                    value[j + 1] += w * v[j + 1];
                }
            }
            merged += members > 1;
            const int32_t to = dest[size_t(head) * CELLS + pivot];
            for (int j = 0; j < DIM; j++) {
                CHECK_NEAR(after.values[size_t(to) * DIM + j], value[j], c.tolerance, c.tolerance);
                if (!rotation.hadamard) { // else the keys are not stored as this loop rotates them
                    CHECK_NEAR(after.keys[size_t(to) * DIM + j], key[j], c.tolerance, c.tolerance);
                }
            }
        }
    }
    CHECK(merged > 0);
    CHECK(llama.llama_memory_seq_rm(llama.llama_get_memory(run.context), 0, LEFT - 1, PROMPT - 1));
}

void test(llama_model * model, const Case & c, std::vector<float> & mass) {
    Random random(7);
    std::vector<llama_token> tokens(PROMPT + MORE);
    for (llama_token & t : tokens) {
        t = random.integer(0, TinyGguf::VOCABULARY - 1);
    }
    Run full(model, c), compressed(model, c);
    full.decode_prompt(tokens.data());
    compressed.decode_prompt(tokens.data());
    CHECK(full.mass == compressed.mass);
    if (mass.empty()) {
        mass = full.mass;
    }
    for (size_t i = 0; i < mass.size(); i++) { // the attention is the model's, however it is computed and stored
        CHECK_NEAR(full.mass[i], mass[i], 10 * c.tolerance + 1e-3, 10 * c.tolerance + 1e-3);
    }
    compress(compressed, c);
    double sum = 0;
    for (int i = PROMPT; i < PROMPT + MORE; i++) {
        const std::vector<float> expected = full.logits_after(tokens[i]), x = compressed.logits_after(tokens[i]);
        std::vector<char> packed(size_t(kvmerge_packed_row_bytes(TinyGguf::VOCABULARY)));
        double kl;
        uint8_t same;
        ok(kvmerge_pack_log_probs(expected.data(), 1, TinyGguf::VOCABULARY, 1, packed.data()));
        ok(kvmerge_kl_divergence(packed.data(), x.data(), 1, TinyGguf::VOCABULARY, 1, &kl, &same));
        sum += kl;
    }
    std::printf("%-12s %d of %d cells, %d tokens: KL divergence %.5f\n", c.name, LEFT, PROMPT, MORE, sum / MORE);
    CHECK_NEAR(sum / MORE, .695, c.kl, 0); // whatever the instruction set
}

} // namespace

int main(int argc, char ** argv) {
    llama_model * const model = tiny_model_for(argc, argv);
    std::vector<float> mass;
    const Case cases[] = {{"F32", false, GGML_TYPE_F32, GGML_TYPE_F32, 1e-4},
                          {"F16", false, GGML_TYPE_F16, GGML_TYPE_F16, 4e-3},
                          {"F16, flash", true, GGML_TYPE_F16, GGML_TYPE_F16, 4e-3},
                          {"Q8_0, flash", true, GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, 4e-2},
                          {"Q5_1 and Q5_0", true, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0, .2, .1},
                          {"Q4_0 and Q4_1", true, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, .4, .2},
                          {"IQ4_NL and F16", true, GGML_TYPE_IQ4_NL, GGML_TYPE_F16, .4, .2},
                          {"Q8_0 and Q4_0", true, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, .4, .2}};
    for (const Case & c : cases) {
        test(model, c, mass);
    }
    llama.llama_model_free(model);
    std::printf("ok\n");
}
