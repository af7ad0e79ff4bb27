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

// Layer of a flash attention node. The node has no name of its own, so it is the layer of the cache that its keys come
// from. -1 for other nodes.
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

// The node that rotated keys. It is looked for through nodes that put keys together or change them. Null for none.
const ggml_tensor * find_rope(const ggml_tensor * t, int depth = 8) {
    if (!t || depth == 0 || t->op == GGML_OP_ROPE) {
        return depth == 0 ? nullptr : t;
    }
    if (const ggml_tensor * found = find_rope(t->src[0], depth - 1)) {
        return found;
    }
    const bool two = t->op == GGML_OP_CONCAT || t->op == GGML_OP_ADD || t->op == GGML_OP_MUL;
    return two ? find_rope(t->src[1], depth - 1) : nullptr;
}

bool is_hadamard(const ggml_tensor * t) {
    return t && t->op == GGML_OP_MUL_MAT && t->src[0] &&
           std::strncmp(t->src[0]->name, HADAMARD, std::strlen(HADAMARD)) == 0;
}

// The keys that a cache write turns into rows: [head_dim][KV heads][tokens]. Null where the graph does not show them.
const ggml_tensor * heads_of(const ggml_tensor * write) {
    const ggml_tensor * rows = write->src[0];
    return rows && rows->op == GGML_OP_VIEW ? rows->src[0] : nullptr;
}

// Whether a cache write pads transposed values to the size of another layer's values.
bool pads(const ggml_tensor * write) {
    const ggml_tensor * elements = write->src[0];
    return elements && elements->op == GGML_OP_RESHAPE && elements->src[0] && elements->src[0]->op == GGML_OP_PAD;
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
    case GGML_TYPE_Q4_0:
        return CELL_Q4_0;
    case GGML_TYPE_Q4_1:
        return CELL_Q4_1;
    case GGML_TYPE_Q5_0:
        return CELL_Q5_0;
    case GGML_TYPE_Q5_1:
        return CELL_Q5_1;
    case GGML_TYPE_IQ4_NL:
        return CELL_IQ4_NL;
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

void check_streams(const ggml_tensor * cache, int n_streams, int layer, const char * which) {
    if (cache->ne[2] == n_streams && cache->ne[3] == 1) {
        return;
    }
    const bool alone = n_streams == 1;
    throw Error(KVMERGE_E_UNSUPPORTED,
                text("layer %d: %s cells of %lld streams, and the observer was made for %d: %s", layer, which,
                     (long long)cache->ne[2], n_streams,
                     alone ? "use one sequence, or kvmerge_observer_create_group"
                           : "make the context with n_seq_max of as many and kv_unified = false"));
}

std::vector<int64_t> rows_written(const ggml_tensor * write, const kvmerge_ggml & ggml) {
    const ggml_tensor * const rows = write->src[1];
    require(rows->type == GGML_TYPE_I64, "cell indices of another type than I64");
    require(rows->ne[0] > 0, "a batch without tokens");
    std::vector<int64_t> index(static_cast<size_t>(rows->ne[0]));
    ggml.tensor_get(rows, index.data(), 0, index.size() * sizeof(int64_t));
    return index;
}

CacheLayout cache_of(const ggml_tensor * write, int n_head_kv, int n_streams, int layer, const char * which) {
    const ggml_tensor * t = write->view_src;
    const int type = cell_type_of(t->type);
    const bool transposed = which[0] == 'V' && write->ne[0] == 1; // its rows are written one element at a time
    if (t->ne[0] <= 0 || t->ne[0] > INT32_MAX || t->ne[1] <= 0 || t->ne[1] > INT32_MAX) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: a cache of %lld x %lld", layer, (long long)t->ne[0], (long long)t->ne[1]));
    }
    const ggml_tensor * heads = which[0] == 'K' ? heads_of(write) : nullptr;
    if (heads && heads->ne[1] != n_head_kv) {
        throw Error(
            KVMERGE_E_UNSUPPORTED,
            text("layer %d has %lld KV heads of %lld where %d were expected: models whose layers differ are not "
                 "handled",
                 layer, (long long)heads->ne[1], (long long)heads->ne[0], n_head_kv));
    }
    if (t->ne[0] % n_head_kv != 0 || pads(write)) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: %s cells of %lld elements for %d KV heads%s: models whose layers differ are not "
                         "handled",
                         layer, which, (long long)t->ne[0], n_head_kv, pads(write) ? ", padded" : ""));
    }
    const int64_t head_dim = t->ne[0] / n_head_kv;
    const bool block_fits = !is_quantised(type) || (!transposed && head_dim % QUANTS == 0);
    if (type < 0 || !block_fits) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: %s cells of ggml type %d are not handled%s (-ctk, -ctv)", layer, which,
                         int(t->type),
                         block_fits ? "; use f16, f32, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl"
                                    : " at this head size; use f16, f32 or bf16"));
    }
    check_streams(t, n_streams, layer, which);
    if (!t->buffer) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells are in no buffer", layer, which));
    }
    return {CellType(type), transposed, int(head_dim), int(t->ne[1])};
}

Attention attention_of(const ggml_tensor * node, int layer) {
    const bool flash = node->op == GGML_OP_FLASH_ATTN_EXT;
    if (param(node, 1) != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: ALiBi attention is not handled: its bias depends on the cell's position", layer));
    }
    Attention a;
    a.scale = param(node, 0);
    if (flash) {
        a.queries = node->src[0];
        a.keys = node->src[1];
        a.mask = node->src[3];
        a.sinks = node->src[4];
        a.cap = param(node, 2);
        return a;
    }
    a.mask = node->src[1];
    a.sinks = node->src[2];
    const ggml_tensor * scores = node->src[0];
    for (; scores && (scores->op == GGML_OP_SCALE || scores->op == GGML_OP_UNARY); scores = scores->src[0]) {
        a.changed = true;
        if (scores->op == GGML_OP_UNARY) {
            a.known &= a.cap == 0 && scores->op_params[0] == GGML_UNARY_OP_TANH;
            a.cap = a.scale; // of what comes after it
        } else {
            a.known &= param(scores, 1) == 0; // nothing is added
            a.scale *= param(scores, 0);
        }
    }
    if (!scores || scores->op != GGML_OP_MUL_MAT || layer_of(scores->name, SCORES) < 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: scores that something is added to before the softmax are not handled", layer));
    }
    a.queries = scores->src[1];
    a.keys = scores->src[0];
    // A softmax may follow its scores right away and write over them. Then nothing else was written since the scores
    // were made, so the queries are still where they were, and one stop a layer shows both.
    a.in_place = !a.changed && scores->data == node->data && scores->data;
    return a;
}

void check_shift(const ggml_tensor * node, int layer) {
    const ggml_tensor * t = through_views(node);
    if (t && t->op == GGML_OP_CPY) {
        t = through_views(t->src[0]);
    }
    t = is_hadamard(t) ? through_views(t->src[1]) : t;
    if (t && t->op == GGML_OP_ROPE && std::fabs(rope_params(t).magnitude() - 1) > 1e-5f) {
        throw Error(
            KVMERGE_E_UNSUPPORTED,
            text("layer %d: llama.cpp's shift of positions multiplies all keys by YaRN's factor, %.3f, each time: "
                 "shift none, and give kvmerge_apply new positions",
                 layer, double(rope_params(t).magnitude())));
    }
}

KeySource key_source(const ggml_tensor * write, int head_dim, int layer) {
    const ggml_tensor * node = through_views(write->src[0]);
    KeySource key;
    if (is_hadamard(node)) {
        key.hadamard = int(node->src[0]->ne[0]);
        if (key.hadamard <= 0 || head_dim % key.hadamard != 0 || (key.hadamard & (key.hadamard - 1)) != 0) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: keys rotated by a matrix of size %d are not handled", layer, key.hadamard));
        }
        node = through_views(node->src[1]);
    }
    if (node && node->op == GGML_OP_CONCAT && node->op_params[0] == 0) { // a rotated part and an unrotated one
        const ggml_tensor * parts[2];
        for (int i = 0; i < 2; i++) {
            parts[i] = through_views(node->src[i]);
            while (parts[i] && parts[i]->op == GGML_OP_REPEAT) { // one part for all heads
                parts[i] = through_views(parts[i]->src[0]);
            }
        }
        for (int i = 0; i < 2; i++) {
            if (parts[i] && parts[i]->op == GGML_OP_ROPE && !find_rope(parts[1 - i])) {
                key.rope = parts[i];
                key.first = i == 0 ? 0 : int(node->src[0]->ne[0]);
                return key;
            }
        }
    }
    if (node && node->op == GGML_OP_ROPE) {
        key.rope = node;
        return key;
    }
    // No rotation right before the cache. Either there is none, or a node follows it that does not commute with it.
    if (find_rope(node)) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: the keys change after their RoPE rotation, so they cannot be rotated to another "
                         "position",
                         layer));
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
