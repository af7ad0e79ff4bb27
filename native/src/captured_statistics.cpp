// What an observer adds up without a stop of the graph: the queries of each layer are captured while the graph runs,
// and looked at when the block is full, or before something else becomes of the keys that they saw.
#include "capture.hpp"
#include "llama_graph.hpp"
#include "observer.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include <algorithm>
#include <vector>

using namespace kvmerge;

namespace {

// Rows in even distances.
struct Sample {
    int first, n, step;
};

// The rows that go into the moments: all of small ubatches, of large ones no more than are enough.
std::vector<Sample> samples_of(const CapturedRows & rows, int n_rows, int enough) {
    std::vector<Sample> samples;
    for (const CapturedRows::Ubatch & u : rows.ubatches) {
        if (u.first >= n_rows) {
            break;
        }
        const bool small = u.n_rows < enough;
        if (small && !samples.empty() && samples.back().step == 1 &&
            samples.back().first + samples.back().n == u.first) {
            samples.back().n += u.n_rows;
            continue;
        }
        const int step = std::max(1, u.n_rows / enough);
        samples.push_back({u.first, (u.n_rows + step - 1) / step, step});
    }
    return samples;
}

} // namespace

// Whether a layer's queries may be captured, as far as they show it. Attention that lies in host memory is read there:
// computing it once more costs as much.
bool kvmerge_observer::may_capture(const ggml_tensor * queries, bool flash) const {
    return !observes(KVMERGE_OBSERVE_STOP) && params.bias != KVMERGE_BIAS_EXACT && !cut &&
           (flash || observes(KVMERGE_OBSERVE_CAPTURE) || !is_host(queries, params.ggml)) &&
           (view_of_queries(queries) || copy_of_queries(queries));
}

// Has a layer's queries copied as the graph runs, so that it need not be stopped. False where they cannot be: the
// layer's attention has to be looked at in a stop, then.
bool kvmerge_observer::capture_queries(const Attention & attention, bool flash, int layer) {
    Layer & l = layers[layer];
    const auto on_host = [&](const ggml_tensor * t) { return is_host(t, params.ggml); };
    const int64_t n_rows = attention.queries->ne[1], n_kv = attention.keys->ne[1];
    if (!may_capture(attention.queries, flash) || !attention.known || (attention.sinks && observes_attention()) ||
        n_rows != int64_t(token_cell.size()) - ubatch_start || n_kv <= 0 || n_kv > l.k.n_cells() ||
        (part.of > 1 && !staging)) { // a graph of several streams whose beginning was not seen
        return false;
    }
    // On the host, on a GPU that is in reach, or in memory that only ggml reaches.
    const bool here = on_host(l.k.tensor()), gpu = !here && &l.k.device() == device && device != &host_device();
    // Another stream's observer may have made the copy already.
    ggml_tensor * const copy = part.of > 1 ? copy_of_queries(attention.queries) : nullptr;
    const auto is_staging = [&] {
        return gpu    ? size_t(layer) < staging->on_gpu.size() && copy->data == staging->on_gpu[size_t(layer)].data()
               : here ? copy->data == staging->at(layer)
                      : size_t(layer) < staging->far.size() && copy->data == staging->far[size_t(layer)].memory.data();
    };
    const bool made = copy && is_staging();
    ggml_tensor * const view = made ? copy : view_of_queries(attention.queries);
    if (!view || (!made && on_host(view) != here) || on_host(view->src[0]) != here ||
        (attention.mask && on_host(attention.mask) != here)) {
        return false;
    }
    // A backend that knows its tensors by more than their addresses, as OpenCL's, would copy them somewhere else.
    const bool far = !here && !gpu;
    if (far && (view->extra || view->src[0]->extra)) {
        return false;
    }
    prepare(l, view);
    if (l.is_on_gpu() != gpu) {
        return false;
    }
    const int row = params.n_head * l.k.dim();
    QuerySlot slot;
    if (gpu) {
        captured_on_gpu.prepare(*device, params.n_layer, params.n_tokens, row, params.n_cells);
        slot.to = captured_on_gpu.slot(layer, view->src[0], attention.mask, int(n_kv), params.mass_queries, staging);
    } else {
        captured.prepare(params.ggml, params.n_layer, params.n_tokens, row, params.n_cells);
        slot = captured.slot(layer, here ? nullptr : view->src[0], attention.mask, int(n_kv), params.mass_queries,
                             staging);
    }
    if (slot.to && !made) {
        capture(view, slot);
    }
    if (slot.to && layer == 0 && far) {
        saw_newest(captured.newest());
    }
    return slot.to != nullptr;
}

Error kvmerge_observer::never_came(int layer, int token) {
    return Error(KVMERGE_E_STATE,
                 text("layer %d: the queries of token %d of the block never came: decoding was cut short, or this "
                      "llama.cpp runs a layer in parts; for the latter observe with KVMERGE_OBSERVE_STOP "
                      "(--observe stop)",
                      layer, token));
}

void kvmerge_observer::add_captured(bool attention) {
    captured.take();
    if (captured.rows().n == 0 && captured_on_gpu.rows().n == 0) {
        return;
    }
    struct Done { // whatever happens: queries that cannot be looked at now never can
        kvmerge_observer & o;
        ~Done() {
            o.captured.clear();
            o.captured_on_gpu.clear();
        }
    } done{*this};
    if (error) {
        return;
    }
    if (captured.rows().n > 0) {
        add_captured_on_host(attention);
    }
    if (captured_on_gpu.rows().n > 0) {
        add_captured_on_gpu(attention);
    }
}

void kvmerge_observer::add_captured_before_writing() {
    add_captured();
    captured_on_gpu.settle();
}

void kvmerge_observer::add_captured_on_host(bool attention) {
    captured.bring();
    for (int layer = 0; layer < params.n_layer; layer++) {
        if (const int token = captured.missing(layer); token >= 0) {
            if (!attention) {
                return; // nobody asks for this block any more
            }
            throw never_came(layer, token);
        }
    }
    const bool moments = observes(KVMERGE_OBSERVE_QUERIES);
    attention = attention && observes_attention();
    if (!moments && !attention) {
        return;
    }
    if (moments) {
        add_waiting_queries();
    }
    for (Layer & l : layers) {
        if (attention && l.k.tensor()) {
            l.k.on_host(); // brought once, before threads look at it
        }
    }
    parallel_for(int64_t(params.n_layer) * params.n_head_kv, params.n_threads, [&](int64_t i) {
        const int layer = int(i / params.n_head_kv), kv_head = int(i % params.n_head_kv);
        if (attention) {
            add_captured_attention(layer, kv_head);
        }
        if (moments) {
            add_captured_moments(layer, kv_head);
        }
    });
    for (int layer = 0; layer < params.n_layer; layer++) {
        if (moments) {
            int n = 0;
            for (const Sample & s : samples_of(captured.rows(), captured.n_rows(layer), ENOUGH_QUERIES)) {
                n += s.n;
            }
            if (n > 0) {
                count_queries(layers[layer], n);
            }
        }
        layers[layer].tokens_seen += attention ? captured.n_rows(layer) : 0;
    }
}

// Which rows stand for the rows from..to of a block, each for as many as it says. Half a distance from either end: a
// token of the block is seen by itself and those after it alone, and would be seen too often by the last row of each
// distance, too rarely by the first.
kvmerge_observer::Rows kvmerge_observer::rows_of_mass(int from, int to) const {
    const int n = to - from;
    if (params.mass_sample == 0 || n <= params.mass_sample || params.mass_queries > 0 ||
        observes(KVMERGE_OBSERVE_ENTROPY)) {
        return {from, n, 1, 1};
    }
    const int step = n / params.mass_sample, sampled = (n - step / 2 + step - 1) / step;
    return {from + step / 2, sampled, step, float(n) / float(sampled)};
}

// Of one KV head: nobody else adds to its mass.
void kvmerge_observer::add_captured_attention(int layer, int kv_head) {
    Layer & l = layers[layer];
    const int n_rows = captured.n_rows(layer), dim = l.k.dim(), first = std::min(captured.rows().first_of_mass, n_rows);
    if (n_rows == 0) {
        return;
    }
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    const std::ptrdiff_t first_head = std::ptrdiff_t(kv_head) * heads_per_kv();
    float * const entropy =
        entropies ? l.entropy.data() + first_head * params.n_tokens + captured.rows().first_token : nullptr;
    const auto add = [&](const Rows & rows, bool with_mass) {
        host_device().score_stats(
            {captured.queries(layer) + (std::ptrdiff_t(rows.first) * params.n_head + first_head) * dim,
             dim,
             std::ptrdiff_t(params.n_head) * dim * rows.step,
             1,
             heads_per_kv(),
             rows.n,
             l.k.on_host(),
             kv_head,
             captured.n_cells(),
             captured.masks() + size_t(rows.first) * size_t(captured.mask_stride()),
             std::ptrdiff_t(captured.mask_stride()) * rows.step,
             l.scale,
             l.cap,
             rows.weight,
             half_powers(),
             with_mass ? l.mass.data() + std::ptrdiff_t(kv_head) * params.n_cells : nullptr,
             params.n_cells,
             entropies ? entropy + rows.first : nullptr,
             params.n_tokens,
             captured.inv_log_visible() + rows.first});
    };
    if (first > 0 && entropies) {
        add({0, first, 1, 1}, false);
    }
    if (first < n_rows) {
        add(rows_of_mass(first, n_rows), true);
    }
}

void kvmerge_observer::add_captured_moments(int layer, int kv_head) {
    Layer & l = layers[layer];
    const std::ptrdiff_t dim = l.k.dim(), row = params.n_head * dim;
    float keep = l.query_keep;
    for (const Sample & s : samples_of(captured.rows(), captured.n_rows(layer), ENOUGH_QUERIES)) {
        host_device().query_moments({captured.queries(layer) + s.first * row + kv_head * heads_per_kv() * dim, dim,
                                     row * s.step, 1, heads_per_kv(), s.n, int(dim), keep,
                                     l.query_sum.data() + kv_head * dim, l.query_second.data() + kv_head * dim * dim});
        if (observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
            const int first_head = kv_head * heads_per_kv();
            add_query_heads(l, first_head, heads_per_kv(), captured.queries(layer) + s.first * row + first_head * dim,
                            dim, row * s.step, s.n, positions.data() + captured.rows().first_token + s.first, s.step,
                            keep);
        }
        keep = 1;
    }
}

// Queues the statistics of all layers on their GPUs. What never came is known when the device has finished: collect()
// looks.
void kvmerge_observer::add_captured_on_gpu(bool attention) {
    const CapturedRows & rows = captured_on_gpu.rows();
    captured_on_gpu.check();
    if (!attention) { // nobody asks for this block any more: what never came is not to spoil the moments
        check(*device);
        for (int layer = 0; layer < params.n_layer; layer++) {
            if (captured_on_gpu.missing(layer) >= 0) {
                captured_on_gpu.forget_missing();
                return;
            }
        }
    }
    std::vector<ScoreStatsArgs> unseen, seen; // rows that count for entropies alone, and the others
    std::vector<std::vector<QueryMomentsArgs>> moments;
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    for (int layer = 0; layer < params.n_layer; layer++) {
        Layer & l = layers[layer];
        const int n_rows = captured_on_gpu.n_rows(layer), dim = l.k.dim(), first = std::min(rows.first_of_mass, n_rows);
        if (n_rows == 0) {
            continue;
        }
        const std::ptrdiff_t row = std::ptrdiff_t(params.n_head) * dim;
        const auto part_of = [&](const Rows & some, bool with_mass) {
            return ScoreStatsArgs{captured_on_gpu.queries(layer) + some.first * row,
                                  dim,
                                  row * some.step,
                                  params.n_head_kv,
                                  heads_per_kv(),
                                  some.n,
                                  l.k.on_device(),
                                  0,
                                  captured_on_gpu.n_cells(),
                                  captured_on_gpu.masks(layer) +
                                      size_t(some.first) * size_t(captured_on_gpu.mask_stride()),
                                  std::ptrdiff_t(captured_on_gpu.mask_stride()) * some.step,
                                  l.scale,
                                  l.cap,
                                  some.weight,
                                  half_powers(),
                                  with_mass ? l.mass.data() : nullptr,
                                  params.n_cells,
                                  entropies ? l.entropy.data() + rows.first_token + some.first : nullptr,
                                  params.n_tokens,
                                  captured_on_gpu.inv_log_visible(layer) + some.first};
        };
        if (attention && observes_attention()) {
            if (first > 0 && entropies) {
                unseen.push_back(part_of({0, first, 1, 1}, false));
            }
            if (first < n_rows) {
                seen.push_back(part_of(rows_of_mass(first, n_rows), true));
            }
            l.tokens_seen += n_rows;
        }
        const std::vector<Sample> samples =
            observes(KVMERGE_OBSERVE_QUERIES) ? samples_of(rows, n_rows, ENOUGH_QUERIES) : std::vector<Sample>();
        for (size_t i = 0; i < samples.size(); i++) {
            const Sample & s = samples[i];
            moments.resize(std::max(moments.size(), i + 1));
            moments[i].push_back({captured_on_gpu.queries(layer) + s.first * row, dim, row * s.step, params.n_head_kv,
                                  heads_per_kv(), s.n, dim, l.query_keep, l.query_sum.data(), l.query_second.data()});
            count_queries(l, s.n); // sets query_keep to 1
        }
    }
    for (const auto * stats : {&unseen, &seen}) {
        if (!stats->empty()) {
            device->score_stats_all(stats->data(), int(stats->size()));
        }
    }
    for (const auto & of_all_layers : moments) { // one after the other: they add to the same sums
        device->query_moments_all(of_all_layers.data(), int(of_all_layers.size()));
    }
}

// The directions to fold biases along, of all layers on GPUs: queued with the block's statistics, so that rewriting
// does not have to wait for them.
void kvmerge_observer::require_captured() const {
    for (int layer = 0; layer < params.n_layer; layer++) {
        if (const int token = captured_on_gpu.missing(layer); token >= 0) {
            throw never_came(layer, token);
        }
    }
}

bool kvmerge_observer::fold_on_gpu() {
    std::vector<FoldDirectionArgs> all;
    for (Layer & l : layers) {
        if (l.stats_device && l.stats_device != &host_device() && l.query_weight > 0 && !l.direction_known) {
            const size_t n = l.query_sum.size();
            if (l.direction.size() == 0) {
                l.direction = DeviceArray<float>(*l.stats_device, n, l.query_sum.data());
                l.direction_on_host = SharedArray<float>(*l.stats_device, n);
            }
            all.push_back({l.query_sum.data(), l.query_second.data(), params.n_head_kv, l.k.dim(), 1 / l.query_weight,
                           params.ridge, l.direction.data()});
        }
    }
    if (all.empty()) {
        return false;
    }
    device->fold_direction_all(all.data(), int(all.size()));
    for (Layer & l : layers) {
        if (l.direction.size() > 0 && !l.direction_known) {
            l.direction.fetch(l.direction_on_host.data());
            l.direction_known = true;
        }
    }
    return true;
}
