// llama.cpp's eval callback: where K and V lie, which cells tokens went to, at which nodes of the graph to stop.
#include "observer.hpp"

#include "llama_graph.hpp"
#include "status.hpp"
#include "stop.hpp"

#include <algorithm>

using namespace kvmerge;

int kvmerge_observer::index_of(int number) const {
    const auto at = std::lower_bound(numbers.begin(), numbers.end(), number);
    if (at != numbers.end() && *at == number) {
        return int(at - numbers.begin());
    }
    require(params.layers, "the model has more layers than the observer was made for");
    return -1;
}

bool kvmerge_observer::wants(ggml_tensor * node) {
    const GraphNode seen = classify(node);
    const int layer = seen.kind == NodeKind::OTHER ? -1 : index_of(seen.layer);
    bool stop = false;
    switch (seen.kind) {
    case NodeKind::KEY_WRITE:
    case NodeKind::VALUE_WRITE:
        saw_cache_write(node, seen.kind == NodeKind::KEY_WRITE, layer);
        break;
    case NodeKind::KEY_SHIFT:
        if (layer >= 0) {
            for (Neighbours & head : layers[layer].neighbours) {
                head.all_rewritten();
            }
        }
        break;
    case NodeKind::SCORES:
        stop = layer >= 0 && saw_scores(layer);
        break;
    case NodeKind::PROBABILITIES:
    case NodeKind::FLASH_ATTENTION:
        stop = layer >= 0 && saw_attention(node, seen.kind == NodeKind::FLASH_ATTENTION, layer);
        break;
    case NodeKind::OTHER:
        break;
    }
    asked_for = stop ? node : nullptr;
    return stop;
}

bool kvmerge_observer::saw_scores(int layer) {
    Layer & l = layers[layer];
    l.stops_at_scores = (observes(KVMERGE_OBSERVE_QUERIES) && !(l.in_place && observes_attention())) ||
                        (params.bias == KVMERGE_BIAS_EXACT && any_bias);
    return l.stops_at_scores;
}

bool kvmerge_observer::saw_attention(const ggml_tensor * node, bool flash, int layer) {
    const Attention attention = attention_of(node, layer);
    if (flash && params.bias == KVMERGE_BIAS_EXACT) {
        throw Error(KVMERGE_E_UNSUPPORTED, "an exact bias needs flash attention off: there are no scores to add it to");
    }
    layers[layer].scale = attention.scale;
    layers[layer].in_place = attention.in_place;
    return observes_attention() || (flash && observes(KVMERGE_OBSERVE_QUERIES));
}

void kvmerge_observer::visit(ggml_tensor * node) {
    if (node != asked_for) {
        return; // a host's own callback asked for it
    }
    asked_for = nullptr;
    Stop stop;
    const GraphNode seen = classify(node);
    const int layer = index_of(seen.layer);
    if (seen.kind == NodeKind::PROBABILITIES) {
        add_attention(stop, node, layer); // first, since it takes longest
        if (observes(KVMERGE_OBSERVE_QUERIES) && !layers[layer].stops_at_scores && layers[layer].in_place) {
            add_queries(stop, node->src[0]->src[1], layer);
        }
    } else if (seen.kind == NodeKind::FLASH_ATTENTION) {
        add_flash_attention(stop, node, layer);
    } else {
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
        const CacheLayout layout = cache_of(node, params.n_head_kv, layer, is_key ? "K" : "V");
        if (layout.n_cells > params.n_cells) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: a cache of %d cells, and the observer was made for %d",
                                                    layer, layout.n_cells, params.n_cells));
        }
        const CellTensor & first = layers[0].k;
        if (is_key && first.tensor() && layout.n_cells != first.n_cells()) {
            throw Error(
                KVMERGE_E_UNSUPPORTED,
                text("layer %d has %d cells where the first has %d: give params.layers without the layers that have "
                     "sliding windows",
                     layer, layout.n_cells, first.n_cells()));
        }
        CellTensor found(cache, layout, params.n_head_kv, *device, params.ggml);
        if (is_key) {
            l.rope = rope_of(node, found.dim(), layer, found.device(), params.ggml);
        }
        cells = std::move(found);
        l.neighbours.clear();
    }
    cells.decoded();
    if (is_key && layer == 0) {
        saw_tokens(node->src[1]);
    }
}

// At the first layer of a ubatch: which cells its tokens go to.
void kvmerge_observer::saw_tokens(const ggml_tensor * rows) {
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
