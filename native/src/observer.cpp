#include "observer.hpp"

#include "kernels/kernels.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include "ggml-backend.h"

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace {

using namespace kvmerge;

// Layer number of a node named "<prefix><number>", or -1.
int layer_of(const char * name, const char * prefix) {
    const size_t n = std::strlen(prefix);
    if (std::strncmp(name, prefix, n) != 0) {
        return -1;
    }
    char * end = nullptr;
    const long layer = std::strtol(name + n, &end, 10);
    return end != name + n && *end == '\0' && layer >= 0 && layer < 65536 ? int(layer) : -1;
}

constexpr const char * KEY_CACHE = "cache_k_l";
constexpr const char * VALUE_CACHE = "cache_v_l";
constexpr const char * SCORES = "kq-";
constexpr const char * PROBABILITIES = "kq_soft_max-";

// Layer of a flash attention node, which has no name of its own: that of the cache its keys come from. -1 for another node.
int layer_of_flash(const ggml_tensor * node) {
    const ggml_tensor * keys = node->src[1];
    while (keys && keys->op == GGML_OP_CPY) { // F32 keys are cast to half precision first
        keys = keys->src[0];
    }
    return keys && keys->view_src ? layer_of(keys->view_src->name, KEY_CACHE) : -1;
}

void require_host(const ggml_tensor * t, const kvmerge_ggml & ggml, int layer) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    if (!t->data || !buffer || !ggml.buffer_is_host(buffer)) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: node %s is not in host memory; run on the CPU (-ngl 0, or --device cpu)", layer, t->name));
    }
}

} // namespace

bool kvmerge_observer::wants(ggml_tensor * node) {
    if (node->op == GGML_OP_SET_ROWS && node->view_src) {
        int layer = layer_of(node->view_src->name, KEY_CACHE);
        if (layer >= 0) {
            saw_cache_write(node, true, layer);
        } else if ((layer = layer_of(node->view_src->name, VALUE_CACHE)) >= 0) {
            saw_cache_write(node, false, layer);
        }
        return false;
    }
    if (node->op == GGML_OP_MUL_MAT && layer_of(node->name, SCORES) >= 0) {
        return observes(KVMERGE_OBSERVE_QUERIES) || (params.bias == KVMERGE_BIAS_EXACT && any_bias);
    }
    const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT;
    if (node->op == GGML_OP_SOFT_MAX || flash) {
        const int layer = flash ? layer_of_flash(node) : layer_of(node->name, PROBABILITIES);
        if (layer < 0) {
            return false;
        }
        require(layer < params.n_layer, "the model has more layers than the observer was made for");
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
        return observes(KVMERGE_OBSERVE_MASS) || observes(KVMERGE_OBSERVE_ENTROPY) ||
               (flash && observes(KVMERGE_OBSERVE_QUERIES));
    }
    return false;
}

void kvmerge_observer::visit(ggml_tensor * node) {
    if (node->op == GGML_OP_SOFT_MAX) {
        add_attention(node, layer_of(node->name, PROBABILITIES));
        return;
    }
    if (node->op == GGML_OP_FLASH_ATTN_EXT) {
        add_flash_attention(node, layer_of_flash(node));
        return;
    }
    const int layer = layer_of(node->name, SCORES);
    if (observes(KVMERGE_OBSERVE_QUERIES)) {
        check_queries(node->src[1], layer);
        add_queries(node->src[1], layer);
    }
    if (params.bias == KVMERGE_BIAS_EXACT && any_bias) {
        add_exact_bias(node, layer);
    }
}

void kvmerge_observer::saw_cache_write(ggml_tensor * node, bool is_key, int layer) {
    require(layer < params.n_layer, "the model has more layers than the observer was made for");
    ggml_tensor * const cache = node->view_src;
    CellTensor & cells = is_key ? layers[layer].k : layers[layer].v;
    // With flash attention off V is stored transposed and its rows are written one element at a time.
    const bool transposed = !is_key && node->ne[0] == 1;
    if (cells.tensor != cache) {
        CellTensor found;
        found.tensor = cache;
        found.transposed = transposed;
        found.n_cells = int(cache->ne[1]);
        found.head_dim = int(cache->ne[0] / params.n_head_kv);
        if (cache->ne[0] % params.n_head_kv != 0 || found.n_cells > params.n_cells) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: cache of %lld x %lld does not fit %d KV heads and %d cells", layer,
                             (long long)cache->ne[0], (long long)cache->ne[1], params.n_head_kv, params.n_cells));
        }
        check_supported(found, params.ggml, layer, is_key ? "K" : "V");
        if (is_key) {
            layers[layer].rope = rope_of(node->src[0], found.head_dim, layer, params.ggml);
        }
        cells = found;
    }
    if (is_key && layer == 0) { // the first layer of a ubatch: which cells its tokens go to
        const ggml_tensor * rows = node->src[1];
        require(rows->type == GGML_TYPE_I64, "cell indices of another type than I64");
        ubatch_start = int(token_cell.size());
        const int64_t n = rows->ne[0];
        require(ubatch_start + n <= params.n_tokens, "more tokens in a block than the observer was made for");
        std::vector<int64_t> index(static_cast<size_t>(n));
        params.ggml.tensor_get(rows, index.data(), 0, index.size() * sizeof(int64_t));
        for (int64_t cell : index) {
            require(cell >= 0 && cell < params.n_cells, "a token was written to a cell outside the cache");
            token_cell.push_back(int32_t(cell));
        }
        visible_of = nullptr;
    }
}

// Refuses queries that the kernels would read wrongly.
void kvmerge_observer::check_queries(const ggml_tensor * q, int layer) const {
    require_host(q, params.ggml, layer);
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || q->ne[2] != params.n_head || q->ne[3] != 1 ||
        q->ne[0] != layers[layer].k.head_dim) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: queries of an unexpected type or shape", layer));
    }
}

void kvmerge_observer::add_queries(const ggml_tensor * q, int layer) {
    Layer & l = layers[layer];
    const int dim = int(q->ne[0]);
    const int group = params.n_head / params.n_head_kv;
    if (l.query_sum.empty()) {
        l.query_sum.assign(size_t(params.n_head_kv) * dim, 0.0f);
        l.query_second.assign(size_t(params.n_head_kv) * dim * dim, 0.0f);
    }
    for (int h = 0; h < params.n_head_kv; h++) {
        const char * data = static_cast<const char *>(q->data) + size_t(h) * group * q->nb[2];
        kernels().query_moments({reinterpret_cast<const float *>(data), std::ptrdiff_t(q->nb[2] / sizeof(float)),
                                 std::ptrdiff_t(q->nb[1] / sizeof(float)), group, int(q->ne[1]), dim,
                                 l.query_sum.data() + size_t(h) * dim, l.query_second.data() + size_t(h) * dim * dim});
    }
    l.query_weight += double(q->ne[1]) * group;
}

void kvmerge_observer::add_exact_bias(ggml_tensor * kq, int layer) {
    require_host(kq, params.ggml, layer);
    const int group = params.n_head / params.n_head_kv;
    const float inverse = 1 / layers[layer].scale;
    for (int64_t h = 0; h < kq->ne[2]; h++) {
        const float * b = bias.data() + head_index(layer, int(h) / group) * params.n_cells;
        for (int64_t r = 0; r < kq->ne[1]; r++) {
            float * row = reinterpret_cast<float *>(static_cast<char *>(kq->data) + h * kq->nb[2] + r * kq->nb[1]);
            for (int64_t c = 0; c < kq->ne[0]; c++) {
                row[c] += b[c] * inverse;
            }
        }
    }
}

void kvmerge_observer::count_visible(const ggml_tensor * mask, int n_kv, int n_rows) {
    inv_log_visible.assign(size_t(n_rows), 0.0f);
    const auto inverse_log = [](int visible) { return visible > 1 ? float(1 / std::log(double(visible))) : 0.0f; };
    for (int r = 0; r < n_rows; r++) {
        int visible = n_kv;
        if (mask) {
            visible = 0;
            const char * row = static_cast<const char *>(mask->data) + size_t(r) * mask->nb[1];
            for (int c = 0; c < n_kv; c++) {
                visible += mask->type == GGML_TYPE_F32 ? reinterpret_cast<const float *>(row)[c] > -INFINITY
                                                       : reinterpret_cast<const uint16_t *>(row)[c] != 0xfc00; // half -inf
            }
        }
        inv_log_visible[r] = inverse_log(visible);
    }
}

// Counts the cells each row sees, once for each mask of a ubatch.
void kvmerge_observer::look_at_mask(const ggml_tensor * mask, int n_kv, int n_rows, int layer) {
    const void * identity = mask ? mask->data : this;
    if (visible_of != identity || int(inv_log_visible.size()) != n_rows) {
        if (mask) {
            require_host(mask, params.ggml, layer);
        }
        count_visible(mask, n_kv, n_rows);
        visible_of = identity;
    }
}

void kvmerge_observer::add_attention(ggml_tensor * p, int layer) {
    require_host(p, params.ggml, layer);
    const int n_kv = int(p->ne[0]), n_rows = int(p->ne[1]);
    if (p->type != GGML_TYPE_F32 || p->nb[0] != sizeof(float) || p->ne[2] != params.n_head || p->ne[3] != 1 ||
        n_kv > params.n_cells) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: attention of an unexpected type or shape", layer));
    }
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    if (entropies) {
        look_at_mask(p->src[1], n_kv, n_rows, layer);
    }
    Layer & l = layers[layer];
    const int group = params.n_head / params.n_head_kv;
    for (int h = 0; h < params.n_head_kv; h++) {
        const char * data = static_cast<const char *>(p->data) + size_t(h) * group * p->nb[2];
        const size_t first_head = size_t(layer) * params.n_head + size_t(h) * group;
        kernels().attention_stats({reinterpret_cast<const float *>(data), std::ptrdiff_t(p->nb[2] / sizeof(float)),
                                   std::ptrdiff_t(p->nb[1] / sizeof(float)), group, n_rows, n_kv,
                                   mass.data() + head_index(layer, h) * params.n_cells,
                                   entropies ? entropy.data() + first_head * params.n_tokens + ubatch_start : nullptr,
                                   params.n_tokens, inv_log_visible.data()});
    }
    l.tokens_seen += n_rows;
}

// Flash attention leaves no matrix: the same statistics from its queries and the cached keys.
void kvmerge_observer::add_flash_attention(ggml_tensor * node, int layer) {
    const ggml_tensor * q = node->src[0];
    const ggml_tensor * mask = node->src[3];
    check_queries(q, layer);
    if (observes(KVMERGE_OBSERVE_QUERIES)) {
        add_queries(q, layer);
    }
    const bool entropies = observes(KVMERGE_OBSERVE_ENTROPY);
    if (!entropies && !observes(KVMERGE_OBSERVE_MASS)) {
        return;
    }
    Layer & l = layers[layer];
    const int n_kv = int(node->src[1]->ne[1]), n_rows = int(q->ne[1]), dim = int(q->ne[0]);
    if (n_kv > l.k.n_cells || (mask && (mask->type != GGML_TYPE_F16 || mask->ne[0] != n_kv || mask->ne[1] < n_rows))) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: flash attention of an unexpected type or shape", layer));
    }
    if (mask) {
        require_host(mask, params.ggml, layer);
    }
    if (entropies) {
        look_at_mask(mask, n_kv, n_rows, layer);
    }
    float cap;
    std::memcpy(&cap, &node->op_params[2], sizeof cap);
    const int group = params.n_head / params.n_head_kv;
    std::vector<int32_t> cells(static_cast<size_t>(n_kv));
    std::iota(cells.begin(), cells.end(), 0);
    parallel_for(params.n_head_kv, params.n_threads, [&](int64_t h) {
        std::vector<float> keys(size_t(n_kv) * dim);
        l.k.read(int(h), cells.data(), n_kv, keys.data());
        const char * data = static_cast<const char *>(q->data) + size_t(h) * group * q->nb[2];
        const size_t first_head = size_t(layer) * params.n_head + size_t(h) * group;
        kernels().score_stats({reinterpret_cast<const float *>(data), std::ptrdiff_t(q->nb[2] / sizeof(float)),
                               std::ptrdiff_t(q->nb[1] / sizeof(float)), group, n_rows, dim, keys.data(), n_kv,
                               mask ? static_cast<const uint16_t *>(mask->data) : nullptr,
                               mask ? std::ptrdiff_t(mask->nb[1] / sizeof(uint16_t)) : 0, l.scale, cap,
                               mass.data() + head_index(layer, int(h)) * params.n_cells,
                               entropies ? entropy.data() + first_head * params.n_tokens + ubatch_start : nullptr,
                               params.n_tokens, inv_log_visible.data()});
    });
    l.tokens_seen += n_rows;
}

namespace kvmerge {

kvmerge_observer & checked(kvmerge_observer * handle) {
    if (!handle) {
        throw Error(KVMERGE_E_ARGUMENT, "the observer is null");
    }
    if (handle->magic != kvmerge_observer::ALIVE) {
        throw Error(KVMERGE_E_ARGUMENT, "not an observer, or one that was freed");
    }
    return *handle;
}

} // namespace kvmerge

extern "C" {

kvmerge_status kvmerge_observer_create(const kvmerge_observer_params * params, kvmerge_observer ** out) {
    return guarded("kvmerge_observer_create", [&] {
        require(params && out, "params or out is null");
        kvmerge_observer_params p = *params;
        require(p.n_layer > 0 && p.n_layer <= 65536, "n_layer must be 1..65536");
        require(p.n_head > 0 && p.n_head_kv > 0 && p.n_head % p.n_head_kv == 0,
                "n_head must be a positive multiple of n_head_kv");
        require(p.n_cells > 0 && p.n_tokens > 0, "n_cells and n_tokens must be positive");
        require(p.observe >= 0 && p.observe < 8, "observe must be KVMERGE_OBSERVE_* flags");
        require(p.bias >= KVMERGE_BIAS_NONE && p.bias <= KVMERGE_BIAS_EXACT, "bias must be one of KVMERGE_BIAS_*");
        require(p.query_decay >= 0 && p.query_decay <= 1, "query_decay must be 0..1");
        require(p.n_threads > 0 && p.n_threads <= 1024, "n_threads must be 1..1024");
        require(p.ggml.tensor_get && p.ggml.tensor_set && p.ggml.buffer_is_host, "ggml entry points are missing");
        if (p.bias == KVMERGE_BIAS_FOLDED) {
            require(p.ridge > 0 && std::isfinite(p.ridge), "ridge must be positive");
            p.observe |= KVMERGE_OBSERVE_QUERIES;
        }
        auto made = std::make_unique<kvmerge_observer>();
        made->params = p;
        made->layers.resize(size_t(p.n_layer));
        const size_t cells = size_t(p.n_layer) * p.n_head_kv * p.n_cells;
        if (p.observe & KVMERGE_OBSERVE_MASS || p.observe & KVMERGE_OBSERVE_ENTROPY) {
            made->mass.assign(cells, 0.0f);
        }
        if (p.observe & KVMERGE_OBSERVE_ENTROPY) {
            made->entropy.assign(size_t(p.n_layer) * p.n_head * p.n_tokens, 0.0f);
        }
        if (p.bias == KVMERGE_BIAS_EXACT) {
            made->bias.assign(cells, 0.0f);
        }
        made->token_cell.reserve(size_t(p.n_tokens));
        *out = made.release();
    });
}

kvmerge_status kvmerge_observer_free(kvmerge_observer * observer) {
    return guarded("kvmerge_observer_free", [&] {
        kvmerge_observer & o = checked(observer);
        o.magic = 0;
        delete &o;
    });
}

bool kvmerge_eval_callback(struct ggml_tensor * tensor, bool ask, void * observer) {
    auto * o = static_cast<kvmerge_observer *>(observer);
    if (!o || !tensor || o->magic != kvmerge_observer::ALIVE) {
        return !ask; // nothing asked for, and the graph goes on
    }
    const auto start = std::chrono::steady_clock::now();
    bool result = !ask;
    try {
        if (ask) {
            result = !o->error && o->wants(tensor);
        } else if (!o->error) {
            o->visit(tensor);
        }
    } catch (const Error & e) {
        o->error = e;
    } catch (const std::exception & e) {
        o->error = Error(KVMERGE_E_STATE, e.what());
    }
    o->nanos += std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
    return result;
}

kvmerge_status kvmerge_observer_begin(kvmerge_observer * observer) {
    return guarded("kvmerge_observer_begin", [&] {
        kvmerge_observer & o = checked(observer);
        std::fill(o.mass.begin(), o.mass.end(), 0.0f);
        o.token_cell.clear();
        o.ubatch_start = 0;
        o.nanos = 0;
        o.error.reset();
        for (auto & l : o.layers) {
            l.tokens_seen = 0;
            l.query_weight *= o.params.query_decay;
            for (float & x : l.query_sum) {
                x *= o.params.query_decay;
            }
            for (float & x : l.query_second) {
                x *= o.params.query_decay;
            }
        }
    });
}

kvmerge_status kvmerge_observer_stats(kvmerge_observer * observer, kvmerge_block_stats * out) {
    return guarded("kvmerge_observer_stats", [&] {
        kvmerge_observer & o = checked(observer);
        require(out, "out is null");
        if (o.error) {
            throw *o.error;
        }
        kvmerge_block_stats stats = {};
        stats.n_tokens = int32_t(o.token_cell.size());
        stats.token_cell = o.token_cell.data();
        for (const auto & l : o.layers) {
            stats.n_layer_seen += stats.n_tokens > 0 && l.tokens_seen == stats.n_tokens;
        }
        if (!o.mass.empty()) {
            for (float m : o.mass) {
                if (!std::isfinite(m)) {
                    throw Error(KVMERGE_E_NUMERIC, "the attention has NaN or infinite entries");
                }
            }
            stats.mass = o.mass.data();
        }
        stats.entropy = o.entropy.empty() ? nullptr : o.entropy.data();
        stats.observe_nanos = o.nanos;
        *out = stats;
    });
}

kvmerge_status kvmerge_observer_cache_info(kvmerge_observer * observer, kvmerge_cache_info * out) {
    return guarded("kvmerge_observer_cache_info", [&] {
        kvmerge_observer & o = checked(observer);
        require(out, "out is null");
        if (o.error) {
            throw *o.error;
        }
        kvmerge_cache_info info = {};
        const auto name = [](const CellTensor & t, char(&to)[16]) { std::snprintf(to, sizeof to, "%s", t.type_name()); };
        for (size_t i = 0; i < o.layers.size(); i++) {
            const auto & l = o.layers[i];
            if (!l.k.tensor || !l.v.tensor) {
                throw Error(KVMERGE_E_STATE,
                            text("layer %zu: no KV cache seen; decode something first, and use a model whose every layer has "
                                 "an ordinary KV cache",
                                 i));
            }
            info.bytes += l.k.bytes() + l.v.bytes();
        }
        const auto & l = o.layers[0];
        info.n_cells = l.k.n_cells;
        info.head_dim_k = l.k.head_dim;
        info.head_dim_v = l.v.head_dim;
        info.v_transposed = l.v.transposed;
        name(l.k, info.type_k);
        name(l.v, info.type_v);
        *out = info;
    });
}

} // extern "C"
