#include "llama_graph.hpp"

#include "status.hpp"

#include <cmath>
#include <cstdlib>

namespace kvmerge {

namespace {

constexpr const char * KEY_CACHE = "cache_k_l";
constexpr const char * VALUE_CACHE = "cache_v_l";
constexpr const char * SCORES = "kq-";
constexpr const char * PROBABILITIES = "kq_soft_max-";
constexpr const char * HADAMARD = "attn_inp_k_rot";

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

// Layer of a flash attention node, which has no name of its own: that of the cache its keys come from. -1 for another
// node.
int layer_of_flash(const ggml_tensor * node) {
    const ggml_tensor * keys = node->src[1];
    while (keys && keys->op == GGML_OP_CPY) { // F32 keys are cast to half precision first
        keys = keys->src[0];
    }
    return keys && keys->view_src ? layer_of(keys->view_src->name, KEY_CACHE) : -1;
}

GraphNode node_of(NodeKind kind, int layer) {
    return layer >= 0 ? GraphNode{kind, layer} : GraphNode{};
}

float param(const ggml_tensor * t, int i) {
    float x;
    std::memcpy(&x, &t->op_params[i], sizeof x);
    return x;
}

const ggml_tensor * through_views(const ggml_tensor * t) {
    while (t && (t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE ||
                 t->op == GGML_OP_TRANSPOSE || t->op == GGML_OP_CONT)) {
        t = t->src[0];
    }
    return t;
}

int cell_type_of(ggml_type type) {
    switch (type) {
    case GGML_TYPE_F32:
        return CELL_F32;
    case GGML_TYPE_F16:
        return CELL_F16;
    case GGML_TYPE_BF16:
        return CELL_BF16;
    case GGML_TYPE_Q8_0:
        return CELL_Q8_0;
    default:
        return -1;
    }
}

} // namespace

GraphNode classify(const ggml_tensor * node) {
    switch (node->op) {
    case GGML_OP_SET_ROWS: {
        if (!node->view_src) {
            return {};
        }
        const int key = layer_of(node->view_src->name, KEY_CACHE);
        return key >= 0 ? node_of(NodeKind::KEY_WRITE, key)
                        : node_of(NodeKind::VALUE_WRITE, layer_of(node->view_src->name, VALUE_CACHE));
    }
    case GGML_OP_ROPE:
    case GGML_OP_CPY:
        return node->view_src ? node_of(NodeKind::KEY_SHIFT, layer_of(node->view_src->name, KEY_CACHE)) : GraphNode{};
    case GGML_OP_MUL_MAT:
        return node_of(NodeKind::SCORES, layer_of(node->name, SCORES));
    case GGML_OP_SOFT_MAX:
        return node_of(NodeKind::PROBABILITIES, layer_of(node->name, PROBABILITIES));
    case GGML_OP_FLASH_ATTN_EXT:
        return node_of(NodeKind::FLASH_ATTENTION, layer_of_flash(node));
    default:
        return {};
    }
}

CacheLayout cache_of(const ggml_tensor * write, int n_head_kv, int layer, const char * which) {
    const ggml_tensor * t = write->view_src;
    const int type = cell_type_of(t->type);
    const bool transposed = which[0] == 'V' && write->ne[0] == 1; // its rows are written one element at a time
    const int64_t head_dim = t->ne[0] / n_head_kv;
    const bool block_fits = type != CELL_Q8_0 || (!transposed && head_dim % 32 == 0);
    if (t->ne[0] % n_head_kv != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells of %lld elements do not divide into %d KV heads",
                                                layer, which, (long long)t->ne[0], n_head_kv));
    }
    if (type < 0 || !block_fits) {
        throw Error(
            KVMERGE_E_UNSUPPORTED,
            text("layer %d: %s cells of ggml type %d are not handled%s; use f16, f32, bf16 or q8_0 (-ctk, -ctv)", layer,
                 which, int(t->type), block_fits ? "" : " at this head size"));
    }
    if (t->ne[2] != 1 || t->ne[3] != 1) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells of %lld streams are not handled; use one sequence",
                                                layer, which, (long long)t->ne[2]));
    }
    if (!t->buffer) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells are in no buffer", layer, which));
    }
    return {CellType(type), transposed, int(t->ne[0]), int(t->ne[1])};
}

Attention attention_of(const ggml_tensor * node, int layer) {
    const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT;
    if (param(node, 1) != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: ALiBi attention is not handled: its bias depends on the cell's position", layer));
    }
    Attention a;
    a.mask = node->src[flash ? 3 : 1];
    a.scale = param(node, 0);
    if (flash) {
        a.cap = param(node, 2);
        return a;
    }
    // Where a softmax follows its scores right away and writes over them, nothing was written anywhere else since the
    // scores were made: the queries are still where they were, and one stop a layer shows both.
    const ggml_tensor * scores = node->src[0];
    a.in_place = scores && scores->op == GGML_OP_MUL_MAT && layer_of(scores->name, SCORES) >= 0 &&
                 scores->data == node->data && scores->data;
    return a;
}

KeySource key_source(const ggml_tensor * write, int head_dim, int layer) {
    const ggml_tensor * node = through_views(write->src[0]);
    KeySource key;
    if (node && node->op == GGML_OP_MUL_MAT && node->src[0] &&
        std::strncmp(node->src[0]->name, HADAMARD, std::strlen(HADAMARD)) == 0) {
        key.hadamard = int(node->src[0]->ne[0]);
        if (key.hadamard <= 0 || head_dim % key.hadamard != 0 || (key.hadamard & (key.hadamard - 1)) != 0) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: keys rotated by a matrix of size %d are not handled", layer, key.hadamard));
        }
        node = through_views(node->src[1]);
    }
    if (node && node->op == GGML_OP_ROPE) {
        key.rope = node;
        return key;
    }
    // No rotation right before the cache: either none at all, or something follows it that a rotation does not commute
    // with.
    for (int depth = 0; node && depth < 8; depth++, node = node->src[0]) {
        if (node->op == GGML_OP_ROPE) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: the keys change after their RoPE rotation, so they cannot be "
                             "rotated to another position",
                             layer));
        }
    }
    return key;
}

RopeParams rope_params(const ggml_tensor * rope) {
    const int32_t * p = rope->op_params;
    return {p[1],           p[2],           p[4],           p[15],          param(rope, 5),
            param(rope, 6), param(rope, 7), param(rope, 8), param(rope, 9), param(rope, 10)};
}

float RopeParams::magnitude() const {
    return ext_factor != 0 ? attn_factor * (1 + 0.1f * std::log(1 / scale)) : attn_factor;
}

} // namespace kvmerge
