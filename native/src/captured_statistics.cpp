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
std::vector<Sample> samples_of(const Captured & captured, int layer, int enough) {
    std::vector<Sample> samples;
    for (const Captured::Ubatch & u : captured.ubatches()) {
        if (u.first >= captured.n_rows(layer)) {
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

// Has a layer's queries copied as the graph runs, so that it need not be stopped. False where they cannot be: the
// layer's attention has to be looked at in a stop, then.
bool kvmerge_observer::capture_queries(const ggml_tensor * node, const Attention & attention, int layer) {
    Layer & l = layers[layer];
    if (observes(KVMERGE_OBSERVE_STOP) || cut) {
        return false;
    }
    // Another stream's observer may have made the copy already.
    ggml_tensor * const copy = part.of > 1 ? copy_of_queries(attention.queries) : nullptr;
    const bool made = copy && copy->data == staging->at(layer);
    ggml_tensor * const view = made ? copy : view_of_queries(attention.queries);
    const auto on_host = [&](const ggml_tensor * t) { return is_host(t, params.ggml); };
    const int64_t n_rows = attention.queries->ne[1], n_kv = node->src[1]->ne[1];
    if (!view || !on_host(view) || !on_host(view->src[0]) || !on_host(l.k.tensor()) ||
        (attention.mask && !on_host(attention.mask)) || n_rows != int64_t(token_cell.size()) - ubatch_start ||
        n_kv <= 0 || n_kv > l.k.n_cells()) {
        return false;
    }
    prepare(l, view);
    captured.prepare(params.n_layer, params.n_tokens, params.n_head * l.k.dim(), params.n_cells);
    float * const to = l.stats_device == &host_device()
                           ? captured.slot(layer, attention.mask, int(n_kv), params.mass_queries, staging)
                           : nullptr;
    if (to && !made) {
        capture(view, to);
    }
    return to != nullptr;
}

void kvmerge_observer::add_captured(bool attention) {
    captured.take();
    if (captured.n_rows() == 0) {
        return;
    }
    struct Done { // whatever happens: queries that cannot be looked at now never can
        Captured & captured;
        ~Done() { captured.clear(); }
    } done{captured};
    if (error) {
        return;
    }
    for (int layer = 0; layer < params.n_layer; layer++) {
        if (const int token = captured.missing(layer); token >= 0) {
            if (!attention) {
                return; // nobody asks for this block any more
            }
            throw Error(KVMERGE_E_STATE,
                        text("layer %d: the queries of token %d of the block never came: decoding was cut short, or "
                             "this llama.cpp runs a layer in parts; for the latter observe with KVMERGE_OBSERVE_STOP "
                             "(--observe stop)",
                             layer, token));
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
            for (const Sample & s : samples_of(captured, layer, ENOUGH_QUERIES)) {
                n += s.n;
            }
            if (n > 0) {
                count_queries(layers[layer], n);
            }
        }
        layers[layer].tokens_seen += attention ? captured.n_rows(layer) : 0;
    }
}

// Of one KV head: nobody else adds to its mass.
void kvmerge_observer::add_captured_attention(int layer, int kv_head) {
    Layer & l = layers[layer];
    const int n_rows = captured.n_rows(layer), dim = l.k.dim(), first = std::min(captured.first_of_mass(), n_rows);
    if (n_rows == 0) {
        return;
    }
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    const std::ptrdiff_t first_head = std::ptrdiff_t(kv_head) * heads_per_kv();
    float * const entropy =
        entropies ? l.entropy.data() + first_head * params.n_tokens + captured.first_token() : nullptr;
    const auto add = [&](int from, int to, bool with_mass) {
        host_device().score_stats(
            {captured.queries(layer) + (std::ptrdiff_t(from) * params.n_head + first_head) * dim, dim,
             std::ptrdiff_t(params.n_head) * dim, 1, heads_per_kv(), to - from, l.k.on_host(), kv_head,
             captured.n_cells(), captured.masks() + size_t(from) * size_t(captured.mask_stride()),
             captured.mask_stride(), l.scale, l.cap, half_powers(),
             with_mass ? l.mass.data() + std::ptrdiff_t(kv_head) * params.n_cells : nullptr, params.n_cells,
             entropies ? entropy + from : nullptr, params.n_tokens, captured.inv_log_visible() + from});
    };
    if (first > 0 && entropies) {
        add(0, first, false);
    }
    if (first < n_rows) {
        add(first, n_rows, true);
    }
}

void kvmerge_observer::add_captured_moments(int layer, int kv_head) {
    Layer & l = layers[layer];
    const std::ptrdiff_t dim = l.k.dim(), row = params.n_head * dim;
    float keep = l.query_keep;
    for (const Sample & s : samples_of(captured, layer, ENOUGH_QUERIES)) {
        host_device().query_moments({captured.queries(layer) + s.first * row + kv_head * heads_per_kv() * dim, dim,
                                     row * s.step, 1, heads_per_kv(), s.n, int(dim), keep,
                                     l.query_sum.data() + kv_head * dim, l.query_second.data() + kv_head * dim * dim});
        keep = 1;
    }
}
