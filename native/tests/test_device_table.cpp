// A table whose columns are on a device, the shim's: kernel by kernel beside CellTable, and whole caches beside the
// same ones on the host.
#include "isa.hpp"
#include "stream_graph.hpp"

#include <cuda_runtime.h> // the shim's, which counts

#include "cache.hpp"
#include "decay.hpp"
#include "device.hpp"
#include "table.hpp"

#include <functional>

#include <memory>
#include <string>

using namespace kvmerge;

namespace {

// ---- the kernels ----------------------------------------------------------------------------------------------------

constexpr int LAYERS = 2, KV_HEADS = 2, PER_KV = 2, PAIRS = LAYERS * KV_HEADS;

// The columns of a device's table, all of them.
struct Rows {
    std::vector<int32_t> cell, position, frame, count;
    std::vector<float> mass, exposure, entropy, prior;
    TableRows rows;
    explicit Rows(int n_cells)
        : cell(size_t(PAIRS * n_cells)), position(cell), frame(cell), count(cell), mass(cell.size()), exposure(mass),
          entropy(mass), prior(mass), rows{PAIRS,        n_cells,     cell.data(),     position.data(), frame.data(),
                                           count.data(), mass.data(), exposure.data(), entropy.data(),  prior.data()} {}
    void check(const CellTable & table) const {
        const CellTable::Columns & of = table.columns();
        for (int pair = 0; pair < PAIRS; pair++) {
            for (size_t i = table.row(pair); i < table.row(pair) + size_t(table.used()); i++) {
                CHECK(cell[i] == of.cell[i] && position[i] == of.position[i] && frame[i] == of.frame[i] &&
                      count[i] == of.count[i]);
                CHECK_NEAR(mass[i], of.mass[i], 1e-6, 1e-5);
                CHECK_NEAR(exposure[i], of.exposure[i], 0, 1e-6);
                CHECK_NEAR(entropy[i], of.entropy[i], 1e-6, 1e-5);
                CHECK_NEAR(prior[i], of.prior[i], 1e-6, 1e-5);
            }
        }
    }
};

// A plan that keeps the newest alone, with groups of cells that lie anywhere.
struct RandomPlan {
    std::vector<int32_t> target;
    std::vector<float> weight, value_weight;
    RandomPlan(int n, int groups, Random & random) : target(size_t(n), -1), weight(target.size(), 1.0f) {
        std::vector<int> order(size_t(n) - 1);
        for (int i = 0; i < n - 1; i++) {
            order[size_t(i)] = i;
        }
        std::shuffle(order.begin(), order.end(), random.engine);
        target.back() = n - 1;
        for (int i = 0; i < groups - 1; i++) {
            target[size_t(order[size_t(i)])] = order[size_t(i)];
        }
        std::vector<float> total(target.size(), 1.0f);
        for (int i = groups - 1; groups > 1 && i < n - 1; i++) {
            if (random.integer(0, 2) > 0) {
                const int p = order[size_t(random.integer(0, groups - 2))], c = order[size_t(i)];
                target[size_t(c)] = p;
                weight[size_t(c)] = float(random.integer(1, 9));
                total[size_t(p)] += weight[size_t(c)];
            }
        }
        for (size_t i = 0; i < target.size(); i++) {
            weight[i] /= target[i] < 0 ? 1 : total[size_t(target[i])];
            value_weight.push_back(random.normal());
        }
    }
};

// What a list of groups says, in no order: destination, members with shares, rotation and bias.
struct Group {
    int dest;
    std::vector<int32_t> member, delta;
    std::vector<float> share, value_share;
    float bias;
};

// The moves that the lists stand for are those of the host's table.
void check_lists(const StageHeadsArgs & a, const kvmerge_moves & moves, int pair) {
    const size_t n_cells = size_t(a.rows.n_cells), base = size_t(pair) * n_cells, room = size_t(a.room);
    const int32_t * const start = a.start + size_t(pair) * (room + 1);
    std::vector<int> size(n_cells, 0), listed(n_cells, 0);
    for (size_t c = 0; c < n_cells; c++) {
        if (moves.target[base + c] >= 0) {
            size[size_t(moves.target[base + c])]++;
        }
    }
    const auto turned = [&](size_t c, size_t p) {
        const int new_position = moves.new_position ? moves.new_position[base + p] : moves.position[base + p];
        return new_position - moves.position[base + c];
    };
    for (int g = 0; g < a.verdict[pair].n_groups; g++) {
        const size_t pivot = size_t(a.member[size_t(pair) * room + size_t(start[g])]);
        CHECK(moves.target[base + pivot] == int(pivot) && size[pivot] == start[g + 1] - start[g]);
        CHECK(a.to[size_t(pair) * room + size_t(g)] == moves.dest[base + pivot]);
        double bias = 0;
        for (int m = start[g]; m < start[g + 1]; m++) {
            const size_t i = size_t(pair) * room + size_t(m), c = size_t(a.member[i]);
            listed[c]++;
            CHECK(moves.target[base + c] == int(pivot) && a.delta[i] == turned(c, pivot));
            const bool alone = size[pivot] == 1;
            CHECK(a.share[i] == (alone ? 1.0f : moves.weight[base + c]));
            const float * const of_value = moves.value_weight ? moves.value_weight : moves.weight;
            CHECK(a.value_share[i] == (alone ? 1.0f : of_value[base + c]));
            bias -= alone ? 0 : double(a.share[i]) * std::log(double(a.share[i]));
        }
        CHECK_NEAR(a.bias[size_t(pair) * room + size_t(g)], 3 * bias, 1e-6, 1e-5);
    }
    for (size_t c = 0; c < n_cells; c++) { // all that changes is listed once, and nothing else
        const int p = moves.target[base + c];
        const bool changes =
            p >= 0 && (size[size_t(p)] > 1 || moves.dest[base + size_t(p)] != p || turned(size_t(p), size_t(p)) != 0);
        CHECK(listed[c] == int(changes));
    }
}

void kernels_agree_with_the_table(const Device & device, unsigned seed) {
    Random random(seed);
    const int budget = random.integer(4, 60), block = random.integer(2, 30), n_cells = budget + block;
    const int range = random.integer(0, 2) == 0 ? budget + random.integer(0, 5) : 0;
    CellTable table({LAYERS, KV_HEADS * PER_KV, KV_HEADS, n_cells}, false, range > 0, false);
    Rows there(n_cells);
    std::vector<int32_t> flaw(PAIRS, 0);
    std::set<int> free;
    for (int c = 0; c < n_cells; c++) {
        free.insert(c);
    }
    int position = 0, frame = 0, pinned = 0;
    for (int times = 0; times < 8; times++) {
        const int n = std::min(block, n_cells - table.used()), used = table.used();
        std::vector<int32_t> token_cell(free.begin(), std::next(free.begin(), n));
        free.erase(free.begin(), std::next(free.begin(), n));
        std::vector<float> mass = random.normals(size_t(PAIRS * n_cells)),
                           entropy = random.normals(size_t(LAYERS * KV_HEADS * PER_KV * block)),
                           product = random.normals(size_t(PAIRS * n)), length = random.normals(size_t(PAIRS * n)),
                           calibration = random.normals(size_t(PAIRS) * 7), prior;
        for (float & m : mass) {
            m = std::fabs(m);
        }
        for (size_t i = 0; i < product.size(); i++) {
            length[i] = std::fabs(length[i]);
            const float * const w = calibration.data() + i / size_t(n) * 7;
            prior.push_back(float(double(w[0]) + double(w[5]) * std::log(double(length[i]) + 1e-3) + product[i]));
        }
        std::vector<const float *> mass_of, entropy_of;
        for (size_t pair = 0; pair < PAIRS; pair++) {
            mass_of.push_back(mass.data() + pair * size_t(n_cells));
            entropy_of.push_back(entropy.data() + pair * PER_KV * size_t(block));
        }
        device.add_block({there.rows, used, n, token_cell.data(), position, frame, decay_over(.9, n), mass_of.data(),
                          entropy_of.data(), block, PER_KV, product.data(), length.data(), calibration.data(), 7,
                          flaw.data()});
        table.add({n, token_cell.data(), mass.data(), entropy.data(), block, prior.data()}, position, frame, .9);
        position += n, frame += n;
        check(device);
        there.check(table);
        if (table.used() <= budget) {
            if (pinned == 0 && table.used() <= budget - 3) {
                table.pin();
                pinned = table.used();
            }
            continue;
        }
        const int back = range > 0 ? std::max(0, frame - range) : 0, all = table.used(), open = all - pinned;
        table.begin(budget, back);
        const bool values_apart = random.integer(0, 2) == 0;
        std::vector<int32_t> target(size_t(PAIRS * n_cells), -1);
        std::vector<float> weight(target.size(), 1), value_weight(target.size(), 1), scale(PAIRS, 3.0f);
        for (int pair = 0; pair < PAIRS; pair++) {
            const RandomPlan plan(open, budget - pinned, random);
            table.stage(pair, {open, plan.target.data(), plan.weight.data(),
                               values_apart ? plan.value_weight.data() : nullptr});
            std::copy(plan.target.begin(), plan.target.end(), target.begin() + pair * n_cells);
            std::copy(plan.weight.begin(), plan.weight.end(), weight.begin() + pair * n_cells);
            std::copy(plan.value_weight.begin(), plan.value_weight.end(), value_weight.begin() + pair * n_cells);
        }
        const int room = back > 0 ? all : std::min(all, 3 * (all - budget));
        const size_t n_list = size_t(PAIRS * room);
        std::vector<int32_t> dest(target.size()), start(size_t(PAIRS * (room + 1))), member(n_list), row(n_list),
            delta(n_list), to(n_list);
        std::vector<float> share(n_list), value_share(n_list), bias(n_list);
        std::vector<Verdict> verdict(PAIRS);
        StageHeadsArgs args = {there.rows,
                               all,
                               pinned,
                               budget,
                               back,
                               1,
                               reinterpret_cast<const uint8_t *>(table.stays().data()),
                               target.data(),
                               weight.data(),
                               values_apart ? value_weight.data() : nullptr,
                               scale.data(),
                               flaw.data(),
                               room,
                               dest.data(),
                               start.data(),
                               member.data(),
                               row.data(),
                               delta.data(),
                               share.data(),
                               value_share.data(),
                               to.data(),
                               bias.data(),
                               verdict.data()};
        // Plans that break a rule are seen, each with the others fine.
        struct Fault {
            int flaw;
            std::function<void(int32_t *, float *)> make;
        };
        const int last = open - 1; // stays, and so does this one:
        const auto kept = std::find_if(target.begin(), target.end(), [](int t) { return t >= 0; }) - target.begin();
        for (const Fault & fault : {Fault{1, [&](int32_t * t, float *) { t[0] = open; }},
                                    {1, [&](int32_t * t, float *) { t[0] = -2; }},
                                    {2, [&](int32_t *, float * w) { w[kept] = NAN; }},
                                    {3, [&](int32_t * t, float *) { t[last] = -1; }},
                                    {3, [&](int32_t *, float * w) { w[last] = .5f; }}}) {
            std::vector<int32_t> spoilt = target;
            std::vector<float> spoilt_weight = weight;
            fault.make(spoilt.data(), spoilt_weight.data());
            StageHeadsArgs with_fault = args;
            with_fault.target = spoilt.data(), with_fault.weight = spoilt_weight.data();
            device.stage_heads(with_fault);
            check(device);
            CHECK(verdict[0].flaw == fault.flaw && verdict[PAIRS - 1].flaw == 0);
        }
        device.stage_heads(args);
        check(device);
        const kvmerge_moves moves = table.moves(true);
        for (int pair = 0; pair < PAIRS; pair++) {
            CHECK(verdict[size_t(pair)].flaw == 0);
            check_lists(args, moves, pair);
        }
        device.commit_heads(
            {there.rows, all, back, room, dest.data(), start.data(), row.data(), share.data(), verdict.data()});
        check(device);
        for (int c = 0; c < n_cells; c++) {
            if (!table.stays()[size_t(c)]) {
                free.insert(c);
            }
        }
        table.commit();
        frame -= back;
        there.check(table);
    }
}

// ---- a whole cache --------------------------------------------------------------------------------------------------

constexpr int CELLS = 9, BLOCK = 5;

struct Case {
    const char * name;
    bool flash, calibrated, entropy, own_plans;
    int bias, position_range;
};

kvmerge_llama fake_llama() {
    kvmerge_llama l = {};
    l.decode = [] {};
    l.synchronize = [](llama_context *) {};
    l.n_ctx_seq = [](const llama_context *) { return uint32_t(StreamGraph::CELLS); };
    l.n_seq_max = [](const llama_context *) { return 1u; };
    l.n_batch = [](const llama_context *) { return 64u; };
    l.get_logits_ith = [](llama_context *, int32_t) -> float * { return nullptr; };
    l.get_memory = [](const llama_context *) -> llama_memory_i * { return nullptr; };
    l.memory_seq_rm = [](llama_memory_i *, int32_t, int32_t, int32_t) { return true; };
    l.memory_seq_pos_max = [](llama_memory_i *, int32_t) { return -1; };
    l.state_seq_get_size = [](llama_context *, int32_t) { return size_t(0); };
    l.state_seq_get_data = [](llama_context *, uint8_t *, size_t, int32_t) { return size_t(0); };
    l.state_seq_set_data = [](llama_context *, const uint8_t *, size_t, int32_t) { return size_t(0); };
    return l;
}

// A cache, its graph and what llama.cpp would know of its cells.
struct Run {
    StreamGraph graph;
    kvmerge_observer * observer = nullptr;
    kvmerge_cache * cache = nullptr;
    std::set<int> free;

    Run(const Case & c, bool on_device) : graph(1, c.flash) {
        on_gpu = on_device;
        kvmerge_observer_params p = params_for(KVMERGE_OBSERVE_MASS, c.bias);
        p.observe |= c.entropy ? KVMERGE_OBSERVE_ENTROPY : 0;
        p.observe |= c.flash ? 0 : KVMERGE_OBSERVE_STOP; // the graph's attention is made up
        p.n_layer = StreamGraph::LAYERS, p.n_head = StreamGraph::HEADS, p.n_head_kv = 1;
        p.n_cells = StreamGraph::CELLS;
        p.device = on_device ? KVMERGE_DEVICE_CUDA : KVMERGE_DEVICE_CPU;
        observer = make(p);
        kvmerge_cache_params q;
        CHECK(kvmerge_cache_defaults(&q) == KVMERGE_OK);
        q.n_cells = CELLS, q.n_block = BLOCK, q.position_range = c.position_range;
        q.sinks = 1, q.key_cost = .5;
        std::vector<float> calibration = Random(5).normals(StreamGraph::LAYERS * (6 + StreamGraph::DIM));
        if (c.calibrated) {
            q.calibration = calibration.data(), q.calibration_dim = StreamGraph::DIM;
        }
        q.llama = fake_llama();
        CHECK(kvmerge_cache_create(&q, observer, reinterpret_cast<llama_context *>(this), 0, &cache) == KVMERGE_OK);
        for (int i = 0; i < StreamGraph::CELLS; i++) {
            free.insert(i);
        }
    }
    ~Run() { CHECK(kvmerge_cache_free(cache) == KVMERGE_OK && kvmerge_observer_free(observer) == KVMERGE_OK); }
    Run(const Run &) = delete;

    kvmerge_cache_used usage() const {
        kvmerge_cache_used used;
        CHECK(kvmerge_cache_usage(cache, &used) == KVMERGE_OK);
        return used;
    }

    // Decodes a block and takes it; the newest token's cell.
    int read(unsigned seed, int n, const kvmerge_status expected = KVMERGE_OK, bool spoilt = false) {
        Random random(seed);
        StreamTokens t;
        t.seen = StreamGraph::CELLS;
        for (; t.seen > 0 && free.count(t.seen - 1); t.seen--) {
        }
        for (int i = 0; i < n; i++) {
            t.cells.push_back(*free.begin());
            free.erase(free.begin());
        }
        for (int layer = 0; layer < StreamGraph::LAYERS; layer++) {
            t.q.push_back(random.normals(size_t(n * StreamGraph::HEADS * StreamGraph::DIM)));
            t.p.push_back(random.normals(size_t(n * StreamGraph::HEADS * StreamGraph::CELLS)));
            for (float & p : t.p.back()) {
                p = std::fabs(p) / 16;
            }
            t.k.push_back(random.normals(size_t(n * StreamGraph::DIM)));
            t.v.push_back(random.normals(size_t(n * StreamGraph::DIM)));
            if (spoilt) {
                t.q.back()[0] = t.p.back()[0] = NAN;
            }
        }
        CHECK(kvmerge_observer_begin(observer) == KVMERGE_OK);
        graph.decode(observer, 0, {t});
        CHECK(kvmerge_cache_take(cache, n, nullptr) == expected);
        return t.cells.back();
    }

    void compress(const Case & c, unsigned seed, int newest) {
        const kvmerge_cache_used used = usage();
        CHECK(used.over);
        if (c.own_plans) {
            for (int layer = 0; layer < StreamGraph::LAYERS; layer++) {
                Random random(seed * 7 + unsigned(layer));
                const int n = used.n_used - used.n_pinned;
                const RandomPlan plan(n, CELLS - used.n_pinned, random);
                CHECK(kvmerge_cache_stage(cache, layer, 0, n, plan.target.data(), plan.weight.data(),
                                          layer == 0 ? nullptr : plan.value_weight.data()) == KVMERGE_OK);
            }
        } else {
            CHECK(kvmerge_cache_plan(cache) == KVMERGE_OK);
        }
        if (kvmerge_cache_commit(cache) != KVMERGE_OK) {
            std::printf("%s\n", kvmerge_last_error());
            std::exit(1);
        }
        for (int cell = CELLS - 1; cell < StreamGraph::CELLS; cell++) {
            if (c.position_range == 0 && cell != newest) {
                free.insert(cell);
            }
        }
    }
};

void same_tables(const Run & host, const Run & device) {
    for (int layer = 0; layer < StreamGraph::LAYERS; layer++) {
        kvmerge_cache_column a, b;
        CHECK(kvmerge_cache_columns(host.cache, layer, 0, &a) == KVMERGE_OK);
        CHECK(kvmerge_cache_columns(device.cache, layer, 0, &b) == KVMERGE_OK);
        CHECK(a.n == b.n && a.n_pinned == b.n_pinned);
        for (int i = 0; i < a.n; i++) {
            CHECK(a.cell[i] == b.cell[i] && a.position[i] == b.position[i] && a.frame[i] == b.frame[i] &&
                  a.count[i] == b.count[i]);
            CHECK_NEAR(a.mass[i], b.mass[i], 1e-5, 1e-4);
            CHECK_NEAR(a.exposure[i], b.exposure[i], 0, 1e-6);
            CHECK_NEAR(a.entropy[i], b.entropy[i], 1e-5, 1e-4);
            CHECK_NEAR(a.prior[i], b.prior[i], 1e-5, 1e-4);
        }
    }
}

// As a state that is restored does: other columns come from the host.
void doubles_masses(kvmerge_cache * handle) {
    CHECK(on_cache("test", handle, Access::ALONE, [](kvmerge_cache & c) {
              c.columns();
              for (float & mass : c.table.copy().mass) {
                  mass *= 2;
              }
              if (c.there) {
                  c.there->replace(c.table);
              }
          }) == KVMERGE_OK);
}

void same_cells(Run & host, Run & device) {
    for (int layer = 0; layer < StreamGraph::LAYERS; layer++) {
        for (size_t i = 0; i < host.graph.keys(layer).size(); i++) {
            CHECK_NEAR(host.graph.keys(layer)[i], device.graph.keys(layer)[i], 2e-4, 1e-3);
            CHECK_NEAR(host.graph.values(layer)[i], device.graph.values(layer)[i], 2e-4, 1e-3);
        }
    }
}

// The work of a device for a block and its rewriting, of all layers, when memory has been allocated: counted, since no
// count depends on how fast a device is. Reading the columns is not part of it.
void a_block_takes_few_launches_and_bytes() {
    const Case c = {"", true, true, false, false, KVMERGE_BIAS_FOLDED, 0};
    Run run(c, true);
    for (unsigned block = 0; block < 6; block++) {
        const shim::Counts before = shim::counts();
        const int newest = run.read(block, BLOCK);
        const shim::Counts read = shim::counts();
        if (!run.usage().over) {
            continue;
        }
        run.compress(c, block, newest);
        const shim::Counts after = shim::counts();
        const size_t cells = StreamGraph::LAYERS * size_t(CELLS + BLOCK);
        std::printf(
            "  block %u: taking %d launches, %d waits, %zu bytes; planning and rewriting %d launches, %d copies, "
            "%d waits, %d allocations, %zu bytes (%zu rows)\n",
            block, read.launches - before.launches, read.waits - before.waits, read.bytes - before.bytes,
            after.launches - read.launches, after.copies - read.copies, after.waits - read.waits,
            after.allocations - read.allocations, after.bytes - read.bytes, cells);
        if (block > 2) {
            CHECK(after.launches - read.launches <= 8); // rates, foreseen, plan, weights, stage, two of merging, commit
            CHECK(read.waits == before.waits && after.waits - read.waits == 1);
            CHECK(after.allocations == before.allocations);
        }
    }
    on_gpu = false;
}

void a_cache_does_there_what_it_does_here(const Case & c) {
    std::printf("  %s\n", c.name);
    Run host(c, false), device(c, true);
    const auto in = [&](Run & run, auto && body) {
        on_gpu = &run == &device;
        return body(run);
    };
    int merged = 0;
    for (unsigned block = 0; block < 10; block++) {
        const int n = block == 0 ? 6 : BLOCK;
        int newest[2];
        for (Run * run : {&host, &device}) {
            newest[run == &device] = in(*run, [&](Run & r) { return r.read(block, std::min(n, BLOCK)); });
        }
        same_tables(host, device);
        if (block == 5) {
            doubles_masses(host.cache);
            doubles_masses(device.cache);
        }
        if (host.usage().over) {
            for (Run * run : {&host, &device}) {
                in(*run, [&](Run & r) {
                    r.compress(c, block, newest[run == &device]);
                    return 0;
                });
            }
            same_tables(host, device);
            same_cells(host, device);
        } else if (block == 0) {
            CHECK(kvmerge_cache_pin(host.cache, 2) == KVMERGE_OK && kvmerge_cache_pin(device.cache, 2) == KVMERGE_OK);
        }
        kvmerge_cache_column column;
        CHECK(kvmerge_cache_columns(device.cache, 1, 0, &column) == KVMERGE_OK);
        merged += *std::max_element(column.count, column.count + column.n) > 1;
    }
    CHECK(merged > 0);
    on_gpu = true;
    CHECK(kvmerge_cache_clear(device.cache) == KVMERGE_OK && device.usage().n_used == 0);
    on_gpu = false;
}

// What the host notices at once, a device notices before anything is written.
void refuses_attention_that_is_no_number() {
    const Case c = {"", false, false, false, false, KVMERGE_BIAS_NONE, 0};
    Run run(c, true);
    run.read(1, BLOCK);
    const std::vector<float> before = run.graph.keys(0);
    run.read(2, BLOCK, KVMERGE_OK, true);
    const std::vector<float> decoded = run.graph.keys(0);
    CHECK(kvmerge_cache_plan(run.cache) == KVMERGE_OK);
    CHECK(kvmerge_cache_commit(run.cache) == KVMERGE_E_NUMERIC);
    CHECK(run.graph.keys(0) == decoded && !run.usage().broken);
    on_gpu = false;
}

} // namespace

int main() {
    const Device & device = cuda_device();
    for (unsigned seed = 0; seed < 12; seed++) {
        kernels_agree_with_the_table(device, seed);
    }
    for (const Case & c : {Case{"flash attention", true, false, false, false, KVMERGE_BIAS_FOLDED, 0},
                           {"flash attention, a calibration, entropy", true, true, true, false, KVMERGE_BIAS_FOLDED, 0},
                           {"probabilities, transposed values", false, true, true, false, KVMERGE_BIAS_FOLDED, 0},
                           {"no bias", true, false, false, false, KVMERGE_BIAS_NONE, 0},
                           {"plans of the caller's", true, false, true, true, KVMERGE_BIAS_FOLDED, 0}}) {
        a_cache_does_there_what_it_does_here(c);
    }
    a_block_takes_few_launches_and_bytes();
    refuses_attention_that_is_no_number();
    std::printf("ok\n");
}
