// What one llama_context's attention did, and where its cells are.
#pragma once

#include "cells.hpp"
#include "kvmerge.h"
#include "rope.hpp"
#include "status.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

struct kvmerge_observer {
    static constexpr uint64_t ALIVE = 0x6b766d6572676521; // tells a live handle from a freed or foreign one
    uint64_t magic = ALIVE;

    kvmerge_observer_params params;

    struct Layer {
        kvmerge::CellTensor k, v;
        kvmerge::Rope rope;
        float scale = 0;                 // of the scores, from the softmax node
        int tokens_seen = 0;             // of this block, whose attention was added up
        double query_weight = 0;         // decayed number of queries in the moments
        std::vector<float> query_sum;    // [n_head_kv][head_dim]
        std::vector<float> query_second; // [n_head_kv][head_dim][head_dim]
    };
    std::vector<Layer> layers;

    std::vector<float> mass;    // [n_layer][n_head_kv][n_cells]
    std::vector<float> entropy; // [n_layer][n_head][n_tokens]
    std::vector<float> bias;    // [n_layer][n_head_kv][n_cells], used with KVMERGE_BIAS_EXACT
    bool any_bias = false;
    std::vector<int32_t> token_cell; // [tokens so far]

    int ubatch_start = 0;               // index in the block of the current ubatch's first token
    const void * visible_of = nullptr;  // the mask that inv_log_visible was counted from
    std::vector<float> inv_log_visible; // [tokens of the ubatch]
    int64_t nanos = 0;
    std::optional<kvmerge::Error> error; // the first that the callback met in this block

    bool observes(int flag) const { return (params.observe & flag) != 0; }
    size_t head_index(int layer, int kv_head) const { return size_t(layer) * params.n_head_kv + kv_head; }

    bool wants(ggml_tensor * node); // the ask phase: learns where things are, says which nodes to stop at
    void visit(ggml_tensor * node); // a node that was asked for has just run

  private:
    void saw_cache_write(ggml_tensor * node, bool is_key, int layer);
    void check_queries(const ggml_tensor * q, int layer) const;
    void add_queries(const ggml_tensor * q, int layer);
    void add_exact_bias(ggml_tensor * kq, int layer);
    void add_attention(ggml_tensor * probabilities, int layer);
    void add_flash_attention(ggml_tensor * node, int layer);
    void look_at_mask(const ggml_tensor * mask, int n_kv, int n_rows, int layer);
    void count_visible(const ggml_tensor * mask, int n_kv, int n_rows);
};

namespace kvmerge {

// The observer behind a handle. Throws ARGUMENT for null, freed and foreign ones.
kvmerge_observer & checked(kvmerge_observer * handle);

} // namespace kvmerge
