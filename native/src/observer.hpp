// The observer of one llama_context, or of one stream of it: what its attention did, and where its cells are.
#pragma once

#include "capture.hpp"
#include "capture_gpu.hpp"
#include "cells.hpp"
#include "device.hpp"
#include "handles.hpp"
#include "kvmerge.h"
#include "neighbours.hpp"
#include "rope.hpp"
#include "status.hpp"
#include "streams.hpp"
#include "windows.hpp"

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace kvmerge {
class Stop;
}

struct kvmerge_observer {
    kvmerge_observer_params params;
    const kvmerge::Device * device;            // the one that params ask for; the CPU handles what it cannot reach
    bool in_group = false;                     // it is called by a group, not by llama.cpp
    int stream = 0, n_streams = 1;             // the one that is observed, of the context's
    std::unique_ptr<kvmerge::Streams> group;   // of a group's own handle, which observes nothing itself
    kvmerge::Part part;                        // the stream's, of the current ubatch
    std::vector<int64_t> written;              // [tokens of the part]: the cells that they go to, within the stream
    std::shared_ptr<kvmerge::Staging> staging; // where the queries of a ubatch of several parts go
    size_t share_of_staging = 0;               // its bytes, by the group's streams

    struct Layer {
        kvmerge::CellTensor k, v;
        kvmerge::Rope rope;
        float scale = 0;             // of the scores, from the softmax node
        float cap = 0;               // of flash attention's scores; 0: they are not capped
        int tokens_seen = 0;         // of this block, whose attention is in mass and entropy
        bool in_place = false;       // the last softmax wrote over its scores
        bool stops_at_scores = true; // in this graph, the observer does
        bool refused = false;        // its queries could not be captured after all, without flash attention

        // What kernels add to. It lies on the device where the layer's attention was first seen.
        const kvmerge::Device * stats_device = nullptr;
        const ggml_backend_buffer * stats_buffer = nullptr; // where that attention lies
        kvmerge::DeviceArray<float> mass;                   // [n_head_kv][n_cells]
        kvmerge::DeviceArray<float> entropy;                // [n_head][n_tokens]
        kvmerge::DeviceArray<float> inv_log_visible;        // [n_tokens]
        kvmerge::DeviceArray<float> query_sum;              // [n_head_kv][head_dim]
        kvmerge::DeviceArray<float> query_second;           // [n_head_kv][head_dim][head_dim]
        double query_weight = 0;                            // decayed number of queries in the moments
        float query_keep = 1;                               // decay that is not applied to the moments yet
        std::vector<float> head_sum;               // [n_head][head_dim], on the host: with KVMERGE_OBSERVE_QUERY_HEADS
        std::vector<float> head_second;            // [n_head][head_dim][head_dim]; decayed as the moments are
        std::vector<float> queries;                // [n_head][ENOUGH_QUERIES][head_dim]: not in the moments yet
        std::vector<int32_t> positions_of_queries; // [n_queries], with KVMERGE_OBSERVE_QUERY_HEADS
        int n_queries = 0;                         // tokens in queries
        // On a GPU: the direction that biases are folded along, as the moments are now, and a copy of it.
        kvmerge::DeviceArray<float> direction; // [n_head_kv][head_dim]
        kvmerge::SharedArray<float> direction_on_host;
        bool direction_known = false;
        bool is_on_gpu() const { return stats_device && stats_device != &kvmerge::host_device(); }

        std::deque<kvmerge::Neighbours> neighbours; // [n_head_kv]; empty before somebody plans over the cells
    };
    std::vector<Layer> layers;
    std::vector<int32_t> numbers;                       // of the layers in the model, ascending
    std::map<const ggml_tensor *, int64_t> other_bytes; // of the caches of layers that are left alone
    kvmerge::WindowCells windows;                       // of those layers

    std::vector<float> mass;    // [n_layer][n_head_kv][n_cells]: what stats() brought to the host
    std::vector<float> entropy; // [n_layer][n_head][n_tokens]
    kvmerge::SharedArray<float> shared_mass, shared_entropy; // the same, where GPUs write them
    std::vector<float> bias; // [n_layer][n_head_kv][n_cells], used with KVMERGE_BIAS_EXACT
    bool any_bias = false;
    // How many calls with its caches go on. They hold what it gave them between two calls with it.
    const std::shared_ptr<std::atomic<int>> in_caches = std::make_shared<std::atomic<int>>(0);
    std::atomic<bool> torn{false};      // writing cells failed midway
    std::atomic<bool> rewriting{false}; // a GPU may still be at it: see finish_rewriting()
    std::mutex finishing;               // held while somebody waits for that
    int lost_before = 0;                // Device::lost, when the rewriting was queued
    bool another_context = false;       // the graph of another llama_context was seen, for good
    std::vector<int32_t> token_cell;    // [tokens so far]
    std::vector<int32_t> positions;     // [tokens so far] that they are rotated to: with KVMERGE_OBSERVE_QUERY_HEADS
    bool positions_known = false;       // of this ubatch: some layer rotates

    int ubatch_start = 0;              // index in the block of the current ubatch's first token
    const void * visible_of = nullptr; // the mask that the next three were counted from
    int looked_at_rows = 0;
    int cells_seen = 0;                 // 1 + the last cell that any row sees
    std::vector<float> inv_log_visible; // [tokens of the ubatch]
    std::vector<char> in_sequence;      // [n_kv]: cells that the newest token sees; empty: not known
    kvmerge::Captured captured;         // queries that the statistics have yet to get
    kvmerge::GpuCapture captured_on_gpu;
    bool cut = false; // a host's own callback stopped this graph
    int64_t nanos = 0;
    std::optional<kvmerge::Error> error; // the first error of the callback in this block
    const kvmerge::Error out_of_memory{KVMERGE_E_MEMORY, "out of memory"}; // made while there still is memory
    std::mutex mirrors; // held while cells are brought to the host, and while queries that wait are added up
    const ggml_tensor * asked_for = nullptr; // the node to stop at next

    // How many tokens of a ubatch have their queries in the moments. Together with those of earlier blocks they are
    // enough for a direction.
    static constexpr int ENOUGH_QUERIES = 64;

    // All that it keeps in memory which grows with layers, heads, cells or tokens; on devices too.
    size_t bytes() const;

    bool observes(int flag) const { return (params.observe & flag) != 0; }
    bool observes_attention() const { return observes(KVMERGE_OBSERVE_MASS) || observes(KVMERGE_OBSERVE_ENTROPY); }
    int half_powers() const { return int(2 * params.mass_power); }
    int heads_per_kv() const { return params.n_head / params.n_head_kv; }
    int find(int number) const noexcept; // index of the model's layer; -1: there is none
    int index_of(int number) const;      // the same; throws where no layer is left alone
    int first_other() const noexcept;    // number of the first layer that is left alone
    bool is_of_sequence(int cell) const; // true also where no mask has shown it
    size_t head_index(int layer, int kv_head) const { return size_t(layer) * params.n_head_kv + kv_head; }

    // llama.cpp's eval callback. Errors are kept for kvmerge_observer_stats().
    bool called(ggml_tensor * node, bool ask) noexcept;
    void fail(const kvmerge::Error & e) noexcept; // keeps an error, if it is the block's first
    void distrust(Layer & layer) noexcept;        // its cells may have been written unseen
    void collect();                               // brings mass and entropy to the host
    // Adds what captured queries did to the statistics, of all layers at once. Without `attention`: to moments only.
    void add_captured(bool attention = true);
    void add_captured_before_writing(); // the same, while the keys are as they are: others are about to write them
    bool fold_on_gpu();                 // whether there was anything to do
    // Throws STATE where queries of the block never came; of those on a GPU that is known once it has finished.
    void require_captured() const;
    // Waits for a rewriting that a GPU may still be at, before anybody else reads or writes cells. On any thread.
    // Throws DEVICE where it failed: then the observer is torn.
    void finish_rewriting();
    void look_at_newest();      // of what is captured on a GPU: finds out what the newest token sees
    void add_waiting_queries(); // of all layers, to the moments
    void add_waiting_queries(Layer & layer);

  private:
    bool wants(ggml_tensor * node); // before a node runs: learns where things are, and says whether to stop at it
    void visit(ggml_tensor * node); // after a node that it stops at has run
    void overlook(const ggml_tensor * node) noexcept; // before a node runs that is not looked at, after an error
    void saw_cache_write(ggml_tensor * node, bool is_key, int layer);
    void saw_window_write(const ggml_tensor * node);
    void saw_tokens();
    void saw_positions(const ggml_tensor * write, int layer);
    void require_positions(int64_t n_queries, int layer) const;
    bool saw_scores(const ggml_tensor * node, int layer);
    void require_keys(int layer) const;
    void check_queries(const ggml_tensor * q, int layer) const;
    void saw_mask(const ggml_tensor * mask);
    void saw_newest(const uint16_t * mask);
    void require_tokens_seen() const;
    bool saw_attention(const ggml_tensor * node, bool flash, int layer);
    void add_captured_on_host(bool attention);
    void add_captured_on_gpu(bool attention);
    static kvmerge::Error never_came(int layer, int token);
    struct Rows { // n rows of a block, from the first on in steps, and how many each stands for
        int first, n, step;
        float weight;
    };
    Rows rows_of_mass(int from, int to) const;
    void add_captured_attention(int layer, int kv_head);
    void add_captured_moments(int layer, int kv_head);
    bool may_capture(const ggml_tensor * queries, bool flash) const;
    bool capture_queries(const kvmerge::Attention & attention, bool flash, int layer);
    void add_queries(kvmerge::Stop & stop, const ggml_tensor * q, int layer);
    void add_query_heads(Layer & layer, int first_head, int n_heads, const float * q, std::ptrdiff_t head_stride,
                         std::ptrdiff_t row_stride, int n_rows, const int32_t * position, int position_step,
                         float keep);
    void keep_query(Layer & layer, const char * query, size_t head_bytes, int token);
    void count_queries(Layer & layer, int n_rows);
    void add_exact_bias(ggml_tensor * kq, int layer);
    void add_attention(kvmerge::Stop & stop, ggml_tensor * probabilities, int layer);
    void add_flash_attention(kvmerge::Stop & stop, ggml_tensor * node, int layer);
    template <class Args, class Kernel>
    void in_observed(const Args & args, Kernel && kernel) const;
    void look_at_mask(const ggml_tensor * mask, int n_kv, int n_rows);
    void prepare(Layer & layer, const ggml_tensor * node);
    const float * visible_on(Layer & layer);
};

namespace kvmerge {

Handles<kvmerge_observer> & observers();
Error another_context(int layer);
// What kvmerge_observer_stats gives, but for the arrays that it brings to the host. Throws as it does.
kvmerge_block_stats finished_block(kvmerge_observer & o, kvmerge_observer * handle);
// Runs an entry's body on the observer behind a handle, if this thread may enter it.
template <class Body>
kvmerge_status on_observer(const char * entry, kvmerge_observer * handle, Access access, Body && body) noexcept {
    return guarded(entry, [&] {
        const Handles<kvmerge_observer>::Use use(observers(), handle, access);
        kvmerge_observer & o = observers().entered(use);
        require(!o.group, "this handle is a group's, for llama.cpp and kvmerge_observer_free: give a stream's");
        body(o);
    });
}

} // namespace kvmerge
