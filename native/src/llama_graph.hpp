// Everything that kvmerge assumes of llama.cpp (v0.5.0), in one place: names and parameters of graph nodes, how
// attention and the cache show in them, and what is refused because it looks otherwise. Whoever takes a new llama.cpp
// compares this file with its source.
//
// The graph of a layer, as far as it matters (src/llama-graph.cpp, src/llama-kv-cache.cpp):
// - SET_ROWS into cache_k_l<N> and cache_v_l<N>: rows are given by I64 indices, and V's are single elements where it is
//   stored transposed.
// - MUL_MAT kq-<N>: scores [n_kv][tokens][heads], from K (source 0) and the rotated queries (source 1).
// - SCALE, UNARY (tanh), SCALE: the scores' soft cap, in some models.
// - SOFT_MAX kq_soft_max-<N>: source 1 is the mask, source 2 the sinks; parameters are the scale and ALiBi's bias.
// - FLASH_ATTN_EXT instead of the last three: Q, K, V, mask, sinks; parameters are scale, ALiBi's bias and the soft
// cap.
//
// The queries are PERMUTE of a VIEW of the whole tensor that was rotated, [head_dim][heads][tokens][parts]. Nothing
// computes from the view, since its permutation views the root: capture.hpp makes a copy of it.
//
// The cache is a tensor for K and one for V in each layer, [n_embd][cells][streams]. Its cells are a multiple of 256.
// With kv_unified = false, each sequence is a stream. A ubatch then has equally many tokens of each of a run of
// neighbouring streams, one stream's after the other's. The indices of SET_ROWS count through the cells of all streams.
// Q, K, V, the mask and the scores have a fourth dimension, the ubatch's streams: a stream's slice is called its part.
//
// Tokens go to the first free cells. A cell has one position, and the mask lets a token see the cells of its sequence
// that are not after it. A shift of positions rotates cache_k_l<N> in a graph of its own: ROPE in place, or a CPY where
// cells are quantised.
#pragma once

#include "kernels/kernels.hpp"
#include "kvmerge.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvmerge {

enum class NodeKind { OTHER, KEY_WRITE, VALUE_WRITE, KEY_SHIFT, SCORES, PROBABILITIES, FLASH_ATTENTION };

// What a node is to the observer. `layer` is the layer's number in the model.
struct GraphNode {
    NodeKind kind = NodeKind::OTHER;
    int layer = -1;
};

GraphNode classify(const ggml_tensor * node);

// Whether a node can be of interest at all. It must be fast: a graph has more than a thousand nodes, and a generation
// computes one for each token.
inline bool may_want(const ggml_tensor * node) {
    switch (node->op) {
    case GGML_OP_SET_ROWS:
    case GGML_OP_SOFT_MAX:
    case GGML_OP_FLASH_ATTN_EXT:
        return true;
    case GGML_OP_MUL_MAT:
        return std::strncmp(node->name, "kq-", 3) == 0;
    case GGML_OP_ROPE:
    case GGML_OP_CPY:
        return node->view_src != nullptr;
    default:
        return false;
    }
}

// How one of a layer's two cache tensors is laid out. `which` is "K" or "V".
struct CacheLayout {
    CellType type;
    bool transposed;
    int head_dim; // elements a cell and KV head
    int n_cells;
};
// Throws UNSUPPORTED for a type or layout that the kernels cannot handle, and for another number of KV heads or
// streams.
CacheLayout cache_of(const ggml_tensor * write, int n_head_kv, int n_streams, int layer, const char * which);
// Throws UNSUPPORTED for a cache of another number of streams.
void check_streams(const ggml_tensor * cache, int n_streams, int layer, const char * which);
// The rows that a cache write goes to: cells, counted through all streams. Throws ARGUMENT for indices that are none.
std::vector<int64_t> rows_written(const ggml_tensor * write, const kvmerge_ggml & ggml);

// A stream's slice of the nodes of a ubatch that has `of` streams.
struct Part {
    int number = 0, of = 1;
    size_t offset(const ggml_tensor * t) const { return size_t(number) * t->nb[3]; }
    const char * data(const ggml_tensor * t) const { return static_cast<const char *>(t->data) + offset(t); }
};

// How a layer attends, as its softmax or flash attention node shows.
struct Attention {
    const ggml_tensor * queries = nullptr; // [head_dim][tokens][heads][parts]
    const ggml_tensor * keys = nullptr;    // [head_dim][n_kv][KV heads][parts]
    const ggml_tensor * mask = nullptr;
    const ggml_tensor * sinks = nullptr; // [heads]: a logit that takes part in the softmax without a cell
    float scale = 1;                     // of the scores where they are small
    float cap = 0;                       // scores are cap * tanh(score / cap); 0: they are not
    bool changed = false;                // a node changes the scores before the softmax
    bool known = true;                   // scale and cap say how
    bool in_place = false;               // the softmax writes over its scores
};
// Throws UNSUPPORTED for attention that depends on more than queries, keys and the mask.
Attention attention_of(const ggml_tensor * node, int layer);

// The keys that llama.cpp shifts to other positions. Throws UNSUPPORTED where the shift changes their length.
void check_shift(const ggml_tensor * node, int layer);

// The cells of a cache are a multiple of this many.
constexpr int CELL_PADDING = 256;

// Whether a mask has this many rows, cells and parts, of a type that MaskRow can read.
inline bool is_mask(const ggml_tensor * mask, int n_kv, int n_rows, int parts) {
    const size_t element = mask->type == GGML_TYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    return (mask->type == GGML_TYPE_F32 || mask->type == GGML_TYPE_F16) && mask->nb[0] == element &&
           mask->nb[1] % element == 0 && mask->nb[3] % element == 0 && mask->ne[0] >= n_kv && mask->ne[1] >= n_rows &&
           mask->ne[3] == parts;
}

// A row of a mask, which sees every cell where there is no mask.
class MaskRow {
  public:
    // `data` is the mask's in host memory, or a part's of it; both may be null.
    MaskRow(const ggml_tensor * mask, const void * data, int row)
        : row_(mask ? static_cast<const char *>(data) + size_t(row) * mask->nb[1] : nullptr),
          floats_(mask && mask->type == GGML_TYPE_F32) {}
    bool sees(int cell) const {
        return !row_     ? true
               : floats_ ? reinterpret_cast<const float *>(row_)[cell] > -__builtin_inff()
                         : reinterpret_cast<const uint16_t *>(row_)[cell] != HIDDEN;
    }
    // How many of the cells 0..n-1 it sees.
    int visible(int n) const {
        int visible = 0;
        for (int c = 0; c < n; c++) {
            visible += sees(c);
        }
        return visible;
    }
    // 1 + the last of the cells 0..n-1 that it sees, and no less than `least`.
    int end(int n, int least) const {
        while (n > least && !sees(n - 1)) {
            n--;
        }
        return std::max(n, least);
    }

  private:
    const char * row_;
    bool floats_;
};

// What the entropy of a row that sees so many cells is multiplied by, so that it lies in 0..1.
inline float inverse_log(int visible) {
    return visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
}

// How the keys that a node writes were rotated (RoPE, Su et al. 2021).
struct KeySource {
    const ggml_tensor * rope = nullptr; // null: the keys carry no rotation
    int first = 0;                      // dimension of a key where those of the node start
    int hadamard = 0;                   // keys are stored multiplied by Hadamard matrices of this size; 0: they are not
};
// Throws UNSUPPORTED for keys that change after their rotation.
KeySource key_source(const ggml_tensor * write, int head_dim, int layer);

// The parameters of a ROPE node.
struct RopeParams {
    int n_dims, mode, n_ctx_orig;
    int first; // dimension where the rotated ones start
    float base, scale, ext_factor, attn_factor, beta_fast, beta_slow;
    // What the node multiplies the rotated dimensions by, besides rotating them (YaRN, Peng et al. 2023).
    float magnitude() const;
};
RopeParams rope_params(const ggml_tensor * rope);

} // namespace kvmerge
