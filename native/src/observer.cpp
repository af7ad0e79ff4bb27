#include "observer.hpp"

#include "kernels/kernels.hpp"
#include "llama_graph.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>

namespace {

using namespace kvmerge;

// A node's data where a device can read it: in place, or a copy on the host.
class NodeData {
  public:
    NodeData(const ggml_tensor * t, const Device & device, const kvmerge_ggml & ggml) {
        if (&device == &host_device() && !is_host(t, ggml)) {
            copy_ = download(t, ggml);
            data_ = copy_.data();
        } else {
            data_ = t->data;
        }
    }
    template <class T>
    T * as(size_t offset = 0) {
        return reinterpret_cast<T *>(static_cast<char *>(data_) + offset);
    }
    // What was changed in a copy goes back; in place it is there already.
    void write_back(ggml_tensor * t, const kvmerge_ggml & ggml) const {
        if (data_ == copy_.data()) {
            ggml.tensor_set(t, copy_.data(), 0, copy_.size());
        }
    }

  private:
    std::vector<char> copy_;
    void * data_ = nullptr;
};

float inverse_log(int n) {
    return n > 1 ? float(1 / std::log(double(n))) : 0.0f;
}

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

// The mass and entropy of one KV head.
template <class Args>
Args stats_of(Args a, int64_t h) {
    a.n_kv_heads = 1;
    a.mass = a.mass ? a.mass + h * a.mass_stride : nullptr;
    a.entropy = a.entropy ? a.entropy + h * a.group * a.entropy_stride : nullptr;
    return a;
}

// What a kernel does for one KV head.
AttentionStatsArgs slice(AttentionStatsArgs a, int64_t h) {
    a.p += h * a.group * a.head_stride;
    return stats_of(a, h);
}

ScoreStatsArgs slice(ScoreStatsArgs a, int64_t h) {
    a.q += h * a.group * a.head_stride;
    a.first_kv_head += int(h);
    return stats_of(a, h);
}

QueryMomentsArgs slice(QueryMomentsArgs a, int64_t h) {
    a.q += h * a.group * a.head_stride;
    a.n_kv_heads = 1;
    a.sum += h * a.dim;
    a.second += h * a.dim * a.dim;
    return a;
}

int64_t operations(const AttentionStatsArgs & a) {
    return int64_t(a.n_kv_heads) * a.group * a.n_rows * a.n_cells;
}

int64_t operations(const ScoreStatsArgs & a) {
    return int64_t(a.n_kv_heads) * a.group * a.n_rows * a.n_cells * a.keys.dim;
}

int64_t operations(const QueryMomentsArgs & a) {
    return int64_t(a.n_kv_heads) * a.group * a.n_rows * a.dim * a.dim / 2;
}

} // namespace

namespace kvmerge {

// The kernels to run at one stop of the graph, none of which needs another's results. The host runs them a KV head at a time, on several threads where that is worth
// starting them; a GPU takes all KV heads at once.
class Stop {
  public:
    template <class Args>
    void add(const Device & device, void (*Device::*kernel)(const Args &), const Args & all) {
        constexpr int64_t WORTH_THREADS = 1 << 23; // as many take longer than it takes until two threads have started
        if (&device != &host_device() || operations(all) < WORTH_THREADS) {
            runs_.push_back([&device, kernel, all] { (device.*kernel)(all); });
            return;
        }
        sliced_ = true;
        for (int h = 0; h < all.n_kv_heads; h++) {
            runs_.push_back([&device, kernel, a = slice(all, h)] { (device.*kernel)(a); });
        }
    }
    // What a kernel reads, until all have run.
    NodeData & keep(NodeData data) { return data_.emplace_back(std::move(data)); }
    void run(int n_threads) {
        parallel_for(int64_t(runs_.size()), sliced_ ? n_threads : 1, [&](int64_t i) { runs_[size_t(i)](); });
    }

  private:
    std::vector<std::function<void()>> runs_;
    std::deque<NodeData> data_;
    bool sliced_ = false;
};

} // namespace kvmerge

int kvmerge_observer::index_of(int number) const {
    const auto at = std::lower_bound(numbers.begin(), numbers.end(), number);
    if (at != numbers.end() && *at == number) {
        return int(at - numbers.begin());
    }
    require(params.layers, "the model has more layers than the observer was made for");
    return -1;
}

bool kvmerge_observer::wants(ggml_tensor * node) {
    const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT;
    if (node->op == GGML_OP_SET_ROWS && node->view_src) {
        const int key = layer_of(node->view_src->name, KEY_CACHE), value = layer_of(node->view_src->name, VALUE_CACHE);
        if (const int number = std::max(key, value); number >= 0) {
            saw_cache_write(node, key >= 0, index_of(number));
        }
        return false;
    }
    if ((node->op == GGML_OP_ROPE || node->op == GGML_OP_CPY) && node->view_src) { // keys that llama.cpp moves to other positions
        const int number = layer_of(node->view_src->name, KEY_CACHE);
        if (const int layer = number >= 0 ? index_of(number) : -1; layer >= 0) {
            for (Neighbours & head : layers[layer].neighbours) {
                head.all_rewritten();
            }
        }
        return false;
    }
    if (const int number = node->op == GGML_OP_MUL_MAT ? layer_of(node->name, SCORES) : -1; number >= 0) {
        const int layer = index_of(number);
        return layer >= 0 && saw_scores(layer);
    }
    if (node->op == GGML_OP_SOFT_MAX || flash) {
        const int number = flash ? layer_of_flash(node) : layer_of(node->name, PROBABILITIES);
        const int layer = number >= 0 ? index_of(number) : -1;
        return layer >= 0 && saw_attention(node, flash, layer);
    }
    return false;
}

bool kvmerge_observer::saw_scores(int layer) {
    Layer & l = layers[layer];
    l.stops_at_scores = (observes(KVMERGE_OBSERVE_QUERIES) && !(l.in_place && observes_attention())) ||
                        (params.bias == KVMERGE_BIAS_EXACT && any_bias);
    return l.stops_at_scores;
}

bool kvmerge_observer::saw_attention(const ggml_tensor * node, bool flash, int layer) {
    float scale_and_alibi[2];
    std::memcpy(scale_and_alibi, node->op_params, sizeof scale_and_alibi);
    if (scale_and_alibi[1] != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: ALiBi attention is not handled: its bias depends on the cell's position", layer));
    }
    if (flash && params.bias == KVMERGE_BIAS_EXACT) {
        throw Error(KVMERGE_E_UNSUPPORTED, "an exact bias needs flash attention off: there are no scores to add it to");
    }
    layers[layer].scale = scale_and_alibi[0];
    layers[layer].in_place = !flash && is_in_place(node);
    return observes(KVMERGE_OBSERVE_MASS) || observes(KVMERGE_OBSERVE_ENTROPY) || (flash && observes(KVMERGE_OBSERVE_QUERIES));
}

void kvmerge_observer::visit(ggml_tensor * node) {
    Stop stop;
    int layer;
    if (node->op == GGML_OP_SOFT_MAX) {
        layer = index_of(layer_of(node->name, PROBABILITIES));
        add_attention(stop, node, layer); // first, since it takes longest
        if (observes(KVMERGE_OBSERVE_QUERIES) && !layers[layer].stops_at_scores && layers[layer].in_place) {
            add_queries(stop, node->src[0]->src[1], layer);
        }
    } else if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        layer = index_of(layer_of_flash(node));
        add_flash_attention(stop, node, layer);
    } else {
        layer = index_of(layer_of(node->name, SCORES));
        if (observes(KVMERGE_OBSERVE_QUERIES)) {
            add_queries(stop, node->src[1], layer);
        }
        if (params.bias == KVMERGE_BIAS_EXACT && any_bias) {
            add_exact_bias(node, layer);
        }
    }
    stop.run(params.n_threads);
    if (layers[layer].stats_device) {
        check(*layers[layer].stats_device);
    }
}

void kvmerge_observer::saw_cache_write(ggml_tensor * node, bool is_key, int layer) {
    ggml_tensor * const cache = node->view_src;
    if (layer < 0) {
        other_bytes[cache] = int64_t(cache->nb[2]) * cache->ne[2];
        return;
    }
    Layer & l = layers[layer];
    CellTensor & cells = is_key ? l.k : l.v;
    if (cells.tensor() != cache) {
        if (cache->ne[0] % params.n_head_kv != 0 || cache->ne[1] > params.n_cells) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: cache of %lld x %lld does not fit %d KV heads and %d cells", layer,
                             (long long)cache->ne[0], (long long)cache->ne[1], params.n_head_kv, params.n_cells));
        }
        const CellTensor & first = layers[0].k;
        if (is_key && first.tensor() && cache->ne[1] != first.n_cells()) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d has %lld cells where the first has %d: give params.layers without the layers that have "
                             "sliding windows",
                             layer, (long long)cache->ne[1], first.n_cells()));
        }
        // With flash attention off V is stored transposed and its rows are written one element at a time.
        const bool transposed = !is_key && node->ne[0] == 1;
        CellTensor found(cache, transposed, params.n_head_kv, *device, params.ggml, layer, is_key ? "K" : "V");
        if (is_key) {
            l.rope = rope_of(node->src[0], found.dim(), layer, found.device(), params.ggml);
        }
        cells = std::move(found);
        l.neighbours.clear();
    }
    cells.decoded();
    if (is_key && layer == 0) { // the first layer of a ubatch: which cells its tokens go to
        const ggml_tensor * rows = node->src[1];
        require(rows->type == GGML_TYPE_I64, "cell indices of another type than I64");
        ubatch_start = int(token_cell.size());
        const int64_t n = rows->ne[0];
        for (Layer & seen : layers) { // an observation window is over the newest queries alone
            if (params.mass_window > 0 && n >= params.mass_window && seen.mass.size()) {
                seen.mass.zero();
            }
        }
        require(ubatch_start + n <= params.n_tokens, "more tokens in a block than the observer was made for");
        std::vector<int64_t> index(static_cast<size_t>(n));
        params.ggml.tensor_get(rows, index.data(), 0, index.size() * sizeof(int64_t));
        for (int64_t cell : index) {
            require(cell >= 0 && cell < params.n_cells, "a token was written to a cell outside the cache");
            token_cell.push_back(int32_t(cell));
        }
        for (Layer & written : layers) {
            for (Neighbours & head : written.neighbours) {
                head.rewritten(token_cell.data() + ubatch_start, size_t(n));
            }
        }
        visible_of = nullptr;
    }
}

// Where a layer's statistics are added up: on the GPU where its attention is computed there, else on the host.
void kvmerge_observer::prepare(Layer & l, const ggml_tensor * node) {
    const bool here = device->owns(node->data) && (device == &host_device() || !is_host(node, params.ggml));
    if (l.stats_device) {
        if (l.stats_device != &host_device() && !here) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("node %s moved from the GPU to the host", node->name));
        }
        return;
    }
    const Device & d = here ? *device : host_device();
    l.stats_device = &d;
    const size_t n_kv = size_t(params.n_head_kv), dim = size_t(l.k.dim());
    if (observes_attention()) {
        l.mass = DeviceArray<float>(d, n_kv * params.n_cells, node->data);
        l.mass.zero();
    }
    if (observes(KVMERGE_OBSERVE_ENTROPY)) {
        l.entropy = DeviceArray<float>(d, size_t(params.n_head) * params.n_tokens, node->data);
        l.entropy.zero();
        l.inv_log_visible = DeviceArray<float>(d, size_t(params.n_tokens), node->data);
    }
    if (observes(KVMERGE_OBSERVE_QUERIES)) {
        l.query_sum = DeviceArray<float>(d, n_kv * dim, node->data);
        l.query_second = DeviceArray<float>(d, n_kv * dim * dim, node->data);
        l.query_sum.zero();
        l.query_second.zero();
    }
    check(d);
}

void kvmerge_observer::add_queries(Stop & stop, const ggml_tensor * q, int layer) {
    Layer & l = layers[layer];
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || q->ne[2] != params.n_head || q->ne[3] != 1 ||
        q->ne[0] != l.k.dim()) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: queries of an unexpected type or shape", layer));
    }
    prepare(l, q);
    if (!observes(KVMERGE_OBSERVE_QUERIES)) {
        return;
    }
    NodeData & data = stop.keep({q, *l.stats_device, params.ggml});
    if (q->ne[1] < ENOUGH_QUERIES && l.stats_device == &host_device()) { // for few, the kernel is mostly overhead
        for (int64_t r = 0; r < q->ne[1]; r++) {
            keep_query(l, data.as<const char>(size_t(r) * q->nb[1]), q->nb[2]);
        }
        return;
    }
    add_waiting_queries(l);
    const int64_t step = std::max<int64_t>(1, q->ne[1] / ENOUGH_QUERIES), n_rows = (q->ne[1] + step - 1) / step;
    stop.add(*l.stats_device, &Device::query_moments,
             QueryMomentsArgs{data.as<const float>(), floats(q->nb[2]), floats(q->nb[1]) * step, params.n_head_kv, group(),
                              int(n_rows), int(q->ne[0]), l.query_keep, l.query_sum.data(), l.query_second.data()});
    count_queries(l, int(n_rows));
}

// Accounts for tokens whose queries a kernel adds to the moments.
void kvmerge_observer::count_queries(Layer & l, int n_rows) {
    l.query_weight = l.query_weight * l.query_keep + double(n_rows) * group();
    l.query_keep = 1;
}

void kvmerge_observer::keep_query(Layer & l, const char * query, size_t head_bytes) {
    if (l.n_queries == ENOUGH_QUERIES) {
        add_waiting_queries(l);
    }
    const size_t dim = size_t(l.k.dim());
    l.queries.resize(size_t(params.n_head) * ENOUGH_QUERIES * dim);
    for (size_t h = 0; h < size_t(params.n_head); h++) {
        std::memcpy(l.queries.data() + (h * ENOUGH_QUERIES + size_t(l.n_queries)) * dim, query + h * head_bytes,
                    dim * sizeof(float));
    }
    l.n_queries++;
}

void kvmerge_observer::add_waiting_queries(Layer & l) {
    if (l.n_queries == 0) {
        return;
    }
    host_device().query_moments({l.queries.data(), std::ptrdiff_t(ENOUGH_QUERIES) * l.k.dim(), l.k.dim(), params.n_head_kv,
                                 group(), l.n_queries, l.k.dim(), l.query_keep, l.query_sum.data(), l.query_second.data()});
    count_queries(l, l.n_queries);
    l.n_queries = 0;
}

void kvmerge_observer::add_waiting_queries() {
    if (std::none_of(layers.begin(), layers.end(), [](const Layer & l) { return l.n_queries > 0; })) {
        return; // after a block of a prompt none are: no threads for nothing
    }
    parallel_for(params.n_layer, params.n_threads, [&](int64_t layer) { add_waiting_queries(layers[size_t(layer)]); });
}

void kvmerge_observer::add_exact_bias(ggml_tensor * kq, int layer) {
    NodeData data(kq, host_device(), params.ggml);
    const float inverse = 1 / layers[layer].scale;
    for (int64_t h = 0; h < kq->ne[2]; h++) {
        const float * b = bias.data() + head_index(layer, int(h) / group()) * params.n_cells;
        for (int64_t r = 0; r < kq->ne[1]; r++) {
            float * row = data.as<float>(size_t(h) * kq->nb[2] + size_t(r) * kq->nb[1]);
            for (int64_t c = 0; c < kq->ne[0]; c++) {
                row[c] += b[c] * inverse;
            }
        }
    }
    data.write_back(kq, params.ggml);
}

// Counts the cells each row sees and finds the last that any does, once for each mask of a ubatch.
void kvmerge_observer::look_at_mask(const ggml_tensor * mask, int n_kv, int n_rows) {
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
    NodeData data(mask, host_device(), params.ggml);
    const bool floats = mask->type == GGML_TYPE_F32;
    cells_seen = 1;
    for (int r = 0; r < n_rows; r++) {
        const char * const row = data.as<const char>(size_t(r) * mask->nb[1]);
        const auto sees = [&](int c) {
            return floats ? reinterpret_cast<const float *>(row)[c] > -INFINITY
                          : reinterpret_cast<const uint16_t *>(row)[c] != 0xfc00; // half -inf
        };
        int last = n_kv;
        while (last > cells_seen && !sees(last - 1)) {
            last--;
        }
        cells_seen = last;
        if (entropies) {
            int visible = 0;
            for (int c = 0; c < n_kv; c++) {
                visible += sees(c);
            }
            inv_log_visible[size_t(r)] = inverse_log(visible);
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

// Calls a kernel for the rows whose attention counts: all, or the last few for the mass, and then all for the entropies.
template <class Args, class Kernel>
void kvmerge_observer::in_window(const Args & args, Kernel && kernel) const {
    const int skipped = params.mass_window > 0 ? args.n_rows - std::min(args.n_rows, params.mass_window) : 0;
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
    if (p->type != GGML_TYPE_F32 || p->nb[0] != sizeof(float) || p->ne[2] != params.n_head || p->ne[3] != 1 ||
        n_kv > params.n_cells || n_rows > params.n_tokens) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: attention of an unexpected type or shape", layer));
    }
    Layer & l = layers[layer];
    prepare(l, p);
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    look_at_mask(p->src[1], n_kv, n_rows);
    NodeData & data = stop.keep({p, *l.stats_device, params.ggml});
    AttentionStatsArgs args = {data.as<const float>(),
                               floats(p->nb[2]),
                               floats(p->nb[1]),
                               params.n_head_kv,
                               group(),
                               n_rows,
                               cells_seen,
                               half_powers(),
                               l.mass.data(),
                               params.n_cells,
                               entropies ? l.entropy.data() + ubatch_start : nullptr,
                               params.n_tokens,
                               visible_on(l)};
    in_window(args, [&](const AttentionStatsArgs & a) { stop.add(*l.stats_device, &Device::attention_stats, a); });
    l.tokens_seen += n_rows;
}

// Flash attention leaves no matrix: the same statistics from its queries and the cached keys.
void kvmerge_observer::add_flash_attention(Stop & stop, ggml_tensor * node, int layer) {
    const ggml_tensor * q = node->src[0];
    const ggml_tensor * mask = node->src[3];
    Layer & l = layers[layer];
    add_queries(stop, q, layer);
    if (!observes_attention()) {
        return;
    }
    const int n_kv = int(node->src[1]->ne[1]), n_rows = int(q->ne[1]);
    if (n_kv > l.k.n_cells() || n_rows > params.n_tokens ||
        (mask && (mask->type != GGML_TYPE_F16 || mask->ne[0] != n_kv || mask->ne[1] < n_rows))) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: flash attention of an unexpected type or shape", layer));
    }
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    look_at_mask(mask, n_kv, n_rows);
    float cap;
    std::memcpy(&cap, &node->op_params[2], sizeof cap);
    const Device & d = *l.stats_device;
    if (&d != &l.k.device() && &d != &host_device()) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: its queries are on the GPU and its keys are not", layer));
    }
    NodeData & queries = stop.keep({q, d, params.ggml});
    NodeData * const hidden = mask ? &stop.keep({mask, d, params.ggml}) : nullptr;
    ScoreStatsArgs args = {queries.as<const float>(),
                           floats(q->nb[2]),
                           floats(q->nb[1]),
                           params.n_head_kv,
                           group(),
                           n_rows,
                           &d == &host_device() ? l.k.on_host() : l.k.on_device(),
                           0,
                           cells_seen,
                           mask ? hidden->as<const uint16_t>() : nullptr,
                           mask ? std::ptrdiff_t(mask->nb[1] / sizeof(uint16_t)) : 0,
                           l.scale,
                           cap,
                           half_powers(),
                           l.mass.data(),
                           params.n_cells,
                           entropies ? l.entropy.data() + ubatch_start : nullptr,
                           params.n_tokens,
                           visible_on(l)};
    in_window(args, [&](const ScoreStatsArgs & a) { stop.add(d, &Device::score_stats, a); });
    l.tokens_seen += n_rows;
}

void kvmerge_observer::collect() {
    for (size_t i = 0; i < layers.size(); i++) {
        const Layer & l = layers[i];
        if (l.mass.size()) {
            l.mass.download(mass.data() + i * l.mass.size(), l.mass.size());
        }
        if (l.entropy.size()) {
            l.entropy.download(entropy.data() + i * l.entropy.size(), l.entropy.size());
        }
        if (l.stats_device) {
            check(*l.stats_device);
        }
    }
}
