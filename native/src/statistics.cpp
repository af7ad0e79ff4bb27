// What an observer adds up at a stop of the graph: attention mass, row entropies, moments of queries.
#include "llama_graph.hpp"
#include "observer.hpp"
#include "parallel.hpp"
#include "status.hpp"
#include "stop.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace {

using namespace kvmerge;

std::ptrdiff_t floats(size_t bytes) {
    return std::ptrdiff_t(bytes / sizeof(float));
}

void skip_rows(AttentionStatsArgs & a, int rows) {
    a.p += rows * a.row_stride;
}

void skip_rows(ScoreStatsArgs & a, int rows) {
    a.q += rows * a.row_stride;
    a.mask = a.mask ? a.mask + rows * a.mask_stride : nullptr;
}

} // namespace

// Makes the arrays of a layer's statistics: on the GPU if its attention is computed there, else on the host.
void kvmerge_observer::prepare(Layer & l, const ggml_tensor * node) {
    ggml_backend_buffer * const buffer = node->view_src ? node->view_src->buffer : node->buffer;
    if (l.stats_device && buffer == l.stats_buffer) { // as in every graph but the first few: the driver is not asked
        return;
    }
    const bool here = device->owns(node->data) && (device == &host_device() || !is_host(node, params.ggml));
    if (l.stats_device) {
        if (l.stats_device != &host_device() && !here) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("node %s moved from the GPU to the host", node->name));
        }
        l.stats_buffer = buffer;
        return;
    }
    const Device & d = here ? *device : host_device();
    const size_t n_kv = size_t(params.n_head_kv), dim = size_t(l.k.dim());
    DeviceArray<float> mass, entropy, inverse, sum, second; // the layer has all of them or none
    std::vector<float> head_sum, head_second;
    if (observes_attention()) {
        mass = DeviceArray<float>(d, n_kv * params.n_cells, node->data);
    }
    if (observes(KVMERGE_OBSERVE_ENTROPY)) {
        entropy = DeviceArray<float>(d, size_t(params.n_head) * params.n_tokens, node->data);
        inverse = DeviceArray<float>(d, size_t(params.n_tokens), node->data);
    }
    if (observes(KVMERGE_OBSERVE_QUERIES)) {
        sum = DeviceArray<float>(d, n_kv * dim, node->data);
        second = DeviceArray<float>(d, n_kv * dim * dim, node->data);
        if (observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
            head_sum.resize(size_t(params.n_head) * dim);
            head_second.resize(size_t(params.n_head) * dim * dim);
        }
    }
    check(d);
    for (DeviceArray<float> * const array : {&mass, &entropy, &sum, &second}) {
        if (array->size() > 0) {
            array->zero();
        }
    }
    check(d);
    l.mass = std::move(mass), l.entropy = std::move(entropy), l.inv_log_visible = std::move(inverse);
    l.query_sum = std::move(sum), l.query_second = std::move(second);
    l.head_sum = std::move(head_sum), l.head_second = std::move(head_second);
    l.stats_buffer = buffer;
    l.stats_device = &d;
}

void kvmerge_observer::add_queries(Stop & stop, const ggml_tensor * q, int layer) {
    Layer & l = layers[layer];
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || q->ne[2] != params.n_head || q->ne[3] != part.of ||
        q->ne[0] != l.k.dim()) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: queries of an unexpected type or shape", layer));
    }
    prepare(l, q);
    if (!observes(KVMERGE_OBSERVE_QUERIES)) {
        return;
    }
    if (observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
        require_positions(q->ne[1], layer);
    }
    NodeData & data = stop.keep({q, *l.stats_device, params.ggml, part});
    if (q->ne[1] < ENOUGH_QUERIES && l.stats_device == &host_device()) { // too few for a kernel: they wait
        for (int64_t r = 0; r < q->ne[1]; r++) {
            keep_query(l, data.as<const char>(size_t(r) * q->nb[1]), q->nb[2], ubatch_start + int(r));
        }
        return;
    }
    add_waiting_queries(l);
    const int64_t step = std::max<int64_t>(1, q->ne[1] / ENOUGH_QUERIES), n_rows = (q->ne[1] + step - 1) / step;
    if (observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
        add_query_heads(l, 0, params.n_head, data.as<const float>(), floats(q->nb[2]), floats(q->nb[1]) * step,
                        int(n_rows), positions.data() + ubatch_start, int(step), l.query_keep);
    }
    stop.add(*l.stats_device, &Device::query_moments,
             QueryMomentsArgs{data.as<const float>(), floats(q->nb[2]), floats(q->nb[1]) * step, params.n_head_kv,
                              heads_per_kv(), int(n_rows), int(q->ne[0]), l.query_keep, l.query_sum.data(),
                              l.query_second.data()});
    count_queries(l, int(n_rows));
}

// Counts tokens whose queries a kernel adds to the moments.
void kvmerge_observer::count_queries(Layer & l, int n_rows) {
    l.query_weight = l.query_weight * l.query_keep + double(n_rows) * heads_per_kv();
    l.query_keep = 1;
    l.direction_known = false;
}

void kvmerge_observer::keep_query(Layer & l, const char * query, size_t head_bytes, int token) {
    if (l.n_queries == ENOUGH_QUERIES) {
        add_waiting_queries(l);
    }
    const size_t dim = size_t(l.k.dim());
    l.queries.resize(size_t(params.n_head) * ENOUGH_QUERIES * dim);
    for (size_t h = 0; h < size_t(params.n_head); h++) {
        std::memcpy(l.queries.data() + (h * ENOUGH_QUERIES + size_t(l.n_queries)) * dim, query + h * head_bytes,
                    dim * sizeof(float));
    }
    if (observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
        l.positions_of_queries.resize(ENOUGH_QUERIES);
        l.positions_of_queries[size_t(l.n_queries)] = positions[size_t(token)];
    }
    l.n_queries++;
}

void kvmerge_observer::add_waiting_queries(Layer & l) {
    if (l.n_queries == 0) {
        return;
    }
    if (observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
        add_query_heads(l, 0, params.n_head, l.queries.data(), std::ptrdiff_t(ENOUGH_QUERIES) * l.k.dim(), l.k.dim(),
                        l.n_queries, l.positions_of_queries.data(), 1, l.query_keep);
    }
    host_device().query_moments({l.queries.data(), std::ptrdiff_t(ENOUGH_QUERIES) * l.k.dim(), l.k.dim(),
                                 params.n_head_kv, heads_per_kv(), l.n_queries, l.k.dim(), l.query_keep,
                                 l.query_sum.data(), l.query_second.data()});
    count_queries(l, l.n_queries);
    l.n_queries = 0;
}

void kvmerge_observer::add_waiting_queries() {
    if (std::none_of(layers.begin(), layers.end(), [](const Layer & l) { return l.n_queries > 0; })) {
        return; // as after most blocks of a prompt: no need to wake threads
    }
    parallel_for(params.n_layer, params.n_threads, [&](int64_t layer) { add_waiting_queries(layers[size_t(layer)]); });
}

void kvmerge_observer::add_exact_bias(ggml_tensor * kq, int layer) {
    if (kq->type != GGML_TYPE_F32 || kq->ne[0] > params.n_cells || kq->ne[2] != params.n_head || kq->ne[3] != part.of) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: scores of an unexpected type or shape", layer));
    }
    NodeData data(kq, host_device(), params.ggml, part);
    const float inverse = 1 / layers[layer].scale;
    for (int64_t h = 0; h < kq->ne[2]; h++) {
        const float * b = bias.data() + head_index(layer, int(h) / heads_per_kv()) * params.n_cells;
        for (int64_t r = 0; r < kq->ne[1]; r++) {
            float * row = data.as<float>(size_t(h) * kq->nb[2] + size_t(r) * kq->nb[1]);
            for (int64_t c = 0; c < kq->ne[0]; c++) {
                row[c] += b[c] * inverse;
            }
        }
    }
    data.write_back(kq, params.ggml);
}

// Counts the cells that each row sees and finds the last cell that any row sees, once for each mask of a ubatch.
void kvmerge_observer::look_at_mask(const ggml_tensor * mask, int n_kv, int n_rows) {
    if (mask && !is_mask(mask, n_kv, n_rows, part.of)) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("mask %s has an unexpected type or shape", mask->name));
    }
    const void * identity = mask ? mask->data : this;
    if (visible_of == identity && looked_at_rows == n_rows) {
        return;
    }
    visible_of = identity;
    looked_at_rows = n_rows;
    cells_seen = n_kv;
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    if (entropies) {
        inv_log_visible.assign(size_t(n_rows), inverse_log(n_kv));
    }
    if (!mask || (!entropies && !is_host(mask, params.ggml))) {
        return;
    }
    NodeData data(mask, host_device(), params.ggml, part);
    cells_seen = 1;
    for (int r = 0; r < n_rows; r++) {
        const MaskRow row(mask, data.as<const char>(), r);
        cells_seen = row.end(n_kv, cells_seen);
        if (entropies) {
            inv_log_visible[size_t(r)] = inverse_log(row.visible(n_kv));
        }
    }
}

const float * kvmerge_observer::visible_on(Layer & l) {
    if (!observes(KVMERGE_OBSERVE_ENTROPY)) {
        return nullptr;
    }
    l.inv_log_visible.upload(inv_log_visible.data(), inv_log_visible.size());
    return l.inv_log_visible.data();
}

// Calls a kernel for the observation queries. Where those are the last few rows, the mass is over them and the
// entropies are of all rows.
template <class Args, class Kernel>
void kvmerge_observer::in_observed(const Args & args, Kernel && kernel) const {
    const int skipped = params.mass_queries > 0 ? args.n_rows - std::min(args.n_rows, params.mass_queries) : 0;
    if (skipped == 0) {
        kernel(args);
        return;
    }
    if (args.entropy) {
        Args all = args;
        all.mass = nullptr;
        kernel(all);
    }
    Args last = args;
    last.n_rows -= skipped;
    skip_rows(last, skipped);
    last.entropy = nullptr;
    kernel(last);
}

void kvmerge_observer::add_attention(Stop & stop, ggml_tensor * p, int layer) {
    const int n_kv = int(p->ne[0]), n_rows = int(p->ne[1]);
    if (p->type != GGML_TYPE_F32 || p->nb[0] != sizeof(float) || p->ne[2] != params.n_head || p->ne[3] != part.of ||
        n_kv <= 0 || n_kv > params.n_cells || n_rows <= 0 || ubatch_start + n_rows > params.n_tokens) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: attention of an unexpected type or shape", layer));
    }
    Layer & l = layers[layer];
    prepare(l, p);
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    look_at_mask(attention_of(p, layer).mask, n_kv, n_rows);
    NodeData & data = stop.keep({p, *l.stats_device, params.ggml, part});
    AttentionStatsArgs args = {data.as<const float>(),
                               floats(p->nb[2]),
                               floats(p->nb[1]),
                               params.n_head_kv,
                               heads_per_kv(),
                               n_rows,
                               cells_seen,
                               half_powers(),
                               l.mass.data(),
                               params.n_cells,
                               entropies ? l.entropy.data() + ubatch_start : nullptr,
                               params.n_tokens,
                               visible_on(l)};
    in_observed(args, [&](const AttentionStatsArgs & a) { stop.add(*l.stats_device, &Device::attention_stats, a); });
    l.tokens_seen += n_rows;
}

// Flash attention leaves no matrix of probabilities: the statistics are made from its queries and the cached keys.
void kvmerge_observer::add_flash_attention(Stop & stop, ggml_tensor * node, int layer) {
    const Attention attention = attention_of(node, layer);
    const ggml_tensor * q = node->src[0];
    const ggml_tensor * mask = attention.mask;
    Layer & l = layers[layer];
    add_queries(stop, q, layer);
    if (!observes_attention()) {
        return;
    }
    const int n_kv = int(node->src[1]->ne[1]), n_rows = int(q->ne[1]);
    if (n_kv <= 0 || n_kv > l.k.n_cells() || n_rows <= 0 || ubatch_start + n_rows > params.n_tokens ||
        (mask && (mask->type != GGML_TYPE_F16 || mask->ne[0] != n_kv || !is_mask(mask, n_kv, n_rows, part.of)))) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: flash attention of an unexpected type or shape", layer));
    }
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    look_at_mask(mask, n_kv, n_rows);
    const Device & d = *l.stats_device;
    if (&d != &l.k.device() && &d != &host_device()) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: its queries are on the GPU and its keys are not", layer));
    }
    NodeData & queries = stop.keep({q, d, params.ggml, part});
    NodeData * const hidden = mask ? &stop.keep({mask, d, params.ggml, part}) : nullptr;
    ScoreStatsArgs args = {queries.as<const float>(),
                           floats(q->nb[2]),
                           floats(q->nb[1]),
                           params.n_head_kv,
                           heads_per_kv(),
                           n_rows,
                           &d == &host_device() ? l.k.on_host() : l.k.on_device(),
                           0,
                           cells_seen,
                           mask ? hidden->as<const uint16_t>() : nullptr,
                           mask ? std::ptrdiff_t(mask->nb[1] / sizeof(uint16_t)) : 0,
                           l.scale,
                           attention.cap,
                           1,
                           half_powers(),
                           l.mass.data(),
                           params.n_cells,
                           entropies ? l.entropy.data() + ubatch_start : nullptr,
                           params.n_tokens,
                           visible_on(l)};
    in_observed(args, [&](const ScoreStatsArgs & a) { stop.add(d, &Device::score_stats, a); });
    l.tokens_seen += n_rows;
}

void kvmerge_observer::collect() {
    if (observes_attention()) {
        mass.resize(head_index(params.n_layer, 0) * size_t(params.n_cells));
    }
    if (observes(KVMERGE_OBSERVE_ENTROPY)) {
        entropy.resize(size_t(params.n_layer) * size_t(params.n_head) * size_t(params.n_tokens));
    }
    if (std::any_of(layers.begin(), layers.end(), [](const Layer & l) { return l.is_on_gpu(); })) {
        if (shared_mass.size() != mass.size() || shared_entropy.size() != entropy.size()) {
            shared_mass = SharedArray<float>(*device, mass.size());
            shared_entropy = SharedArray<float>(*device, entropy.size());
        }
        if (params.bias == KVMERGE_BIAS_FOLDED) {
            fold_on_gpu();
        }
    }
    // Those on GPUs are fetched to shared memory, without waiting for each.
    const auto bring = [](const DeviceArray<float> & from, bool gpu, size_t layer, std::vector<float> & to,
                          SharedArray<float> & shared) {
        if (from.size() && gpu) {
            from.fetch(shared.data() + layer * from.size());
        } else if (from.size()) {
            from.download(to.data() + layer * from.size(), from.size());
        }
    };
    for (size_t i = 0; i < layers.size(); i++) {
        bring(layers[i].mass, layers[i].is_on_gpu(), i, mass, shared_mass);
        bring(layers[i].entropy, layers[i].is_on_gpu(), i, entropy, shared_entropy);
    }
    check(*device); // the one time in a block that the host waits for its statistics
    require_captured();
    for (size_t i = 0; i < layers.size(); i++) {
        const Layer & l = layers[i];
        if (l.is_on_gpu()) {
            const auto take = [&](const DeviceArray<float> & of, const SharedArray<float> & shared,
                                  std::vector<float> & to) {
                std::copy_n(shared.data() + i * of.size(), of.size(), to.data() + i * of.size());
            };
            take(l.mass, shared_mass, mass);
            take(l.entropy, shared_entropy, entropy);
        }
    }
}
