// The eval callback: learns where K and V lie and which cells tokens go to, and stops at nodes of the graph.
#include "observer.hpp"

#include "cell_access.hpp"
#include "llama_graph.hpp"
#include "status.hpp"
#include "stop.hpp"

#include <algorithm>
#include <chrono>

using namespace kvmerge;

size_t kvmerge_observer::bytes() const {
    size_t n = bytes_of(mass) + bytes_of(entropy) + bytes_of(bias) + shared_mass.bytes() + shared_entropy.bytes() +
               bytes_of(token_cell) + bytes_of(positions) + bytes_of(inv_log_visible) + bytes_of(in_sequence) +
               captured.bytes() + captured_on_gpu.bytes() + share_of_staging;
    for (const Layer & l : layers) {
        n += l.k.own_bytes() + l.v.own_bytes() + l.rope.freq.bytes() + l.mass.bytes() + l.entropy.bytes() +
             l.inv_log_visible.bytes() + l.query_sum.bytes() + l.query_second.bytes() + bytes_of(l.queries) +
             bytes_of(l.head_sum) + bytes_of(l.head_second) + bytes_of(l.positions_of_queries) + l.direction.bytes() +
             l.direction_on_host.bytes();
        for (const Neighbours & head : l.neighbours) {
            n += head.bytes();
        }
    }
    return n;
}

int kvmerge_observer::find(int number) const noexcept {
    const auto at = std::lower_bound(numbers.begin(), numbers.end(), number);
    return at != numbers.end() && *at == number ? int(at - numbers.begin()) : -1;
}

int kvmerge_observer::index_of(int number) const {
    const int index = find(number);
    require(index >= 0 || params.layers, "the model has more layers than the observer was made for");
    return index;
}

bool kvmerge_observer::wants(ggml_tensor * node) {
    const GraphNode seen = classify(node);
    const int layer = seen.kind == NodeKind::OTHER ? -1 : index_of(seen.layer);
    bool stop = false;
    switch (seen.kind) {
    case NodeKind::KEY_WRITE:
    case NodeKind::VALUE_WRITE:
        saw_cache_write(node, seen.kind == NodeKind::KEY_WRITE, layer);
        if (seen.kind == NodeKind::KEY_WRITE && seen.layer == first_other()) {
            saw_window_write(node);
        }
        break;
    case NodeKind::KEY_SHIFT:
        if (layer >= 0) {
            add_captured_before_writing(); // with the keys as they were
            check_shift(node, layer);
            layers[layer].k.decoded();
            for (Neighbours & head : layers[layer].neighbours) {
                head.all_rewritten();
            }
        }
        break;
    case NodeKind::SCORES:
        stop = layer >= 0 && saw_scores(node, layer);
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

void kvmerge_observer::fail(const Error & e) noexcept {
    if (!error) {
        error = e;
    }
}

// After an error, the rest of the block is not observed.
bool kvmerge_observer::called(ggml_tensor * node, bool ask) noexcept {
    const auto start = std::chrono::steady_clock::now();
    bool result = !ask;
    if (!error || rewriting) {
        try {
            try {
                finish_rewriting(); // nothing of this graph has run that writes cells
                if (!error && ask) {
                    result = wants(node);
                } else if (!error) {
                    visit(node);
                }
            } catch (const Error & e) {
                fail(e);
            } catch (const std::bad_alloc &) {
                fail(Error(KVMERGE_E_MEMORY, "out of memory"));
            } catch (const std::exception & e) {
                fail(Error(KVMERGE_E_STATE, e.what()));
            } catch (...) {
                fail(Error(KVMERGE_E_STATE, "unknown error"));
            }
        } catch (...) { // no memory for the message
            fail(out_of_memory);
        }
    }
    if (ask && error) {
        overlook(node);
    }
    nanos += std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
    return result;
}

void kvmerge_observer::finish_rewriting() {
    if (!rewriting) {
        return;
    }
    const std::lock_guard<std::mutex> lock(finishing);
    if (!rewriting) { // another thread has waited for it in the meantime
        require_untorn(*this);
        return;
    }
    device->settle(ALL_PLACES);
    torn = device->lost() != lost_before; // another's wait may have met the failure, and been told
    rewriting = false;
    if (torn) {
        const char * const what = device->failed();
        throw Error(KVMERGE_E_DEVICE, text("%s: rewriting cells failed, and what they hold is unknown: make the "
                                           "context and its observer anew. %s",
                                           device->name, what ? what : "Another call had the error."));
    }
}

void kvmerge_observer::distrust(Layer & l) noexcept {
    l.k.decoded();
    l.v.decoded();
    for (Neighbours & head : l.neighbours) {
        head.all_rewritten();
    }
}

// llama.cpp writes the cells all the same: what is known of them counts no more.
void kvmerge_observer::overlook(const ggml_tensor * node) noexcept {
    const GraphNode seen = classify(node);
    if (seen.kind == NodeKind::KEY_WRITE || seen.kind == NodeKind::VALUE_WRITE || seen.kind == NodeKind::KEY_SHIFT) {
        if (const int layer = find(seen.layer); layer >= 0) {
            distrust(layers[layer]);
        }
    }
}

// Arrays of a layer's statistics are as large as its keys say: no attention is looked at before they are known.
void kvmerge_observer::require_keys(int layer) const {
    if (!layers[layer].k.tensor()) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d keeps no keys: models whose layers share them are not handled", layer));
    }
}

bool kvmerge_observer::saw_scores(const ggml_tensor * node, int layer) {
    Layer & l = layers[layer];
    require_keys(layer);
    check_queries(node->src[1], layer);
    const bool shown_later = (l.in_place && observes_attention()) || (!l.refused && may_capture(node->src[1], false));
    l.stops_at_scores =
        (observes(KVMERGE_OBSERVE_QUERIES) && !shown_later) || (params.bias == KVMERGE_BIAS_EXACT && any_bias);
    return l.stops_at_scores;
}

// Layers whose heads differ are recognised here, before anything is written.
void kvmerge_observer::check_queries(const ggml_tensor * q, int layer) const {
    if (q->ne[2] != params.n_head || q->ne[0] != layers[layer].k.dim() || q->ne[3] != part.of) {
        throw Error(
            KVMERGE_E_UNSUPPORTED,
            text("layer %d has %lld query heads of %lld where %d of %d were expected: models whose layers differ, "
                 "and several sequences, are not handled",
                 layer, (long long)q->ne[2], (long long)q->ne[0], params.n_head, layers[layer].k.dim()));
    }
}

// Whether to stop at a layer's attention.
bool kvmerge_observer::saw_attention(const ggml_tensor * node, bool flash, int layer) {
    Layer & l = layers[layer];
    require_keys(layer);
    const Attention attention = attention_of(node, layer);
    if (params.bias == KVMERGE_BIAS_EXACT) {
        if (flash) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        "an exact bias needs flash attention off: there are no scores to add it to");
        }
        if (attention.changed) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: an exact bias would be added before the scores' soft cap: fold it", layer));
        }
    }
    if (flash) {
        check_queries(attention.queries, layer);
        if (observes_attention() && attention.sinks) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: flash attention with sinks is not observed: turn it off "
                                                    "(-fa off)",
                                                    layer));
        }
    }
    if (layer == 0 && attention.mask) {
        saw_mask(attention.mask);
    }
    l.scale = attention.scale;
    l.cap = attention.cap;
    l.in_place = attention.in_place;
    const bool queries = observes(KVMERGE_OBSERVE_QUERIES) && (flash || !l.stops_at_scores);
    if (!observes_attention() && !queries) {
        return false;
    }
    // Queries of which a stop at the scores has shown the moments are not captured as well.
    const bool captured_now =
        !(observes(KVMERGE_OBSERVE_QUERIES) && !queries) && capture_queries(attention, flash, layer);
    l.refused |= !captured_now && !flash && may_capture(attention.queries, flash);
    if (!captured_now) {
        captured_on_gpu.distrust_time();
    }
    return !captured_now;
}

void kvmerge_observer::visit(ggml_tensor * node) {
    captured_on_gpu.distrust_time();
    if (node != asked_for) {
        cut = true; // the host's own callback asked for this node
        return;
    }
    asked_for = nullptr;
    Stop stop;
    const GraphNode seen = classify(node);
    const int layer = index_of(seen.layer);
    if (seen.kind == NodeKind::PROBABILITIES) {
        if (observes_attention()) {
            add_attention(stop, node, layer); // starts first, since it takes longest
        }
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

Error kvmerge::another_context(int layer) {
    return Error(KVMERGE_E_STATE,
                 text("layer %d: this is another llama_context's cache; an observer belongs to one", layer));
}

void kvmerge_observer::saw_cache_write(ggml_tensor * node, bool is_key, int layer) {
    ggml_tensor * const cache = node->view_src;
    if (layer < 0) {
        other_bytes[cache] = int64_t(cache->nb[2]) * cache->ne[2] / n_streams;
        return;
    }
    Layer & l = layers[layer];
    CellTensor & cells = is_key ? l.k : l.v;
    if (another_context || (cells.tensor() && !cells.is_of(cache))) { // the first context's memory may be gone
        another_context = true;
        throw kvmerge::another_context(layer);
    }
    if (!cells.tensor()) {
        const CacheLayout layout = cache_of(node, params.n_head_kv, n_streams, layer, is_key ? "K" : "V");
        if (layout.n_cells > params.n_cells) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: a cache of %d cells, and the observer was made for %d",
                                                    layer, layout.n_cells, params.n_cells));
        }
        if (params.n_cells - layout.n_cells >= CELL_PADDING) { // the caller's arrays would have the larger size
            throw Error(
                KVMERGE_E_UNSUPPORTED,
                text("layer %d: a cache of %d cells, and the observer was made for %d: make it for llama_n_ctx_seq",
                     layer, layout.n_cells, params.n_cells));
        }
        const CellTensor & other = is_key ? l.v : l.k;
        if (other.tensor() && other.n_cells() != layout.n_cells) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: caches of %d and of %d cells for keys and values", layer,
                                                    layout.n_cells, other.n_cells()));
        }
        const CellTensor & first = is_key ? layers[0].k : layers[0].v;
        if (first.tensor() && layout.n_cells != first.n_cells()) {
            throw Error(
                KVMERGE_E_UNSUPPORTED,
                text("layer %d has %d cells where the first has %d: give params.layers without the layers that have "
                     "sliding windows",
                     layer, layout.n_cells, first.n_cells()));
        }
        if (first.tensor() && layout.head_dim != first.dim()) {
            throw Error(
                KVMERGE_E_UNSUPPORTED,
                text("layer %d: %s heads of %d elements where the first layer's have %d: models whose layers differ "
                     "are not handled",
                     layer, is_key ? "K" : "V", layout.head_dim, first.dim()));
        }
        CellTensor found(cache, layout, stream, *device, params.ggml);
        if (is_key) {
            l.rope = rope_of(node, found.dim(), layer, found.device(), params.ggml);
        }
        cells = std::move(found);
        l.neighbours.clear();
    }
    if (is_key && layer == 0) {
        if (!in_group) { // else the group has shared them out
            written = rows_written(node, params.ggml);
        }
        saw_tokens(); // looks at the keys as they were
    }
    if (is_key && observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
        saw_positions(node, layer);
    }
    cells.decoded();
}

// The first layer that is left alone: all of those have their tokens in the same cells.
int kvmerge_observer::first_other() const noexcept {
    int number = 0;
    for (; number < int(numbers.size()) && numbers[size_t(number)] == number; number++) {
    }
    return number;
}

void kvmerge_observer::saw_window_write(const ggml_tensor * node) {
    const int64_t n_cells = node->view_src->ne[1];
    require(n_cells > 0, "a cache without cells");
    std::vector<int64_t> cells;
    for (const int64_t row : rows_written(node, params.ggml)) {
        if (row / n_cells == stream) {
            cells.push_back(row % n_cells);
        }
    }
    windows.wrote(cells, n_cells);
}

// At the first layer of a ubatch: notes which cells its tokens go to.
void kvmerge_observer::saw_tokens() {
    const int64_t n = int64_t(written.size());
    require(int64_t(token_cell.size()) + n <= params.n_tokens, "more tokens in a block than the observer was made for");
    for (int64_t cell : written) {
        require(cell >= 0 && cell < layers[0].k.n_cells(), "a token was written to a cell outside the cache");
    }
    look_at_newest();
    if (captured.large() || captured.sees(written) || !captured_on_gpu.has_room(int(n)) ||
        captured_on_gpu.sees(written)) { // nothing of this graph has run: the keys are those they saw
        add_captured_before_writing();
    }
    ubatch_start = int(token_cell.size());
    captured.next_ubatch(ubatch_start, int(n), part);
    captured_on_gpu.next_ubatch(ubatch_start, int(n), part);
    cut = false;
    token_cell.reserve(size_t(params.n_tokens)); // must not move: kvmerge_observer_stats() gives its address
    token_cell.insert(token_cell.end(), written.begin(), written.end());
    for (Layer & seen : layers) { // this ubatch has all observation queries: older ones go
        if (params.mass_queries > 0 && n >= params.mass_queries && seen.mass.size()) {
            seen.mass.zero();
        }
    }
    for (size_t first = 0; any_bias && first < bias.size(); first += size_t(params.n_cells)) {
        for (size_t t = size_t(ubatch_start); t < token_cell.size(); t++) { // a bias was of what the cell held
            bias[first + size_t(token_cell[t])] = 0;
        }
    }
    for (Layer & written : layers) {
        for (Neighbours & head : written.neighbours) {
            head.rewritten(token_cell.data() + ubatch_start, size_t(n));
        }
    }
    visible_of = nullptr;
}
