// What is assumed of llama.cpp's graph: the names of its nodes and caches, and how attention looks in it.
#pragma once

#include "ggml.h"

#include <cstdlib>
#include <cstring>

namespace kvmerge {

// Layer number of a node named "<prefix><number>", or -1.
inline int layer_of(const char * name, const char * prefix) {
    const size_t n = std::strlen(prefix);
    if (std::strncmp(name, prefix, n) != 0) {
        return -1;
    }
    char * end = nullptr;
    const long layer = std::strtol(name + n, &end, 10);
    return end != name + n && *end == '\0' && layer >= 0 && layer < 65536 ? int(layer) : -1;
}

inline constexpr const char * KEY_CACHE = "cache_k_l";
inline constexpr const char * VALUE_CACHE = "cache_v_l";
inline constexpr const char * SCORES = "kq-";
inline constexpr const char * PROBABILITIES = "kq_soft_max-";

// Whether a node can be of interest at all. A graph has a thousand and more, for each token of a generation: even to look at the clock would show.
inline bool may_want(const ggml_tensor * node) {
    switch (node->op) {
    case GGML_OP_SET_ROWS:
    case GGML_OP_SOFT_MAX:
    case GGML_OP_FLASH_ATTN_EXT:
        return true;
    case GGML_OP_MUL_MAT:
        return std::strncmp(node->name, SCORES, std::strlen(SCORES)) == 0;
    case GGML_OP_ROPE:
    case GGML_OP_CPY:
        return node->view_src != nullptr;
    default:
        return false;
    }
}

// Layer of a flash attention node, which has no name of its own: that of the cache its keys come from. -1 for another node.
inline int layer_of_flash(const ggml_tensor * node) {
    const ggml_tensor * keys = node->src[1];
    while (keys && keys->op == GGML_OP_CPY) { // F32 keys are cast to half precision first
        keys = keys->src[0];
    }
    return keys && keys->view_src ? layer_of(keys->view_src->name, KEY_CACHE) : -1;
}

// Whether a softmax follows its scores right away and writes over them. Then nothing was written anywhere else since the scores were
// made, so that the queries are still where they were, and one stop a layer shows both.
inline bool is_in_place(const ggml_tensor * soft_max) {
    const ggml_tensor * scores = soft_max->src[0];
    return scores && scores->op == GGML_OP_MUL_MAT && layer_of(scores->name, SCORES) >= 0 && scores->data == soft_max->data &&
           scores->data;
}

} // namespace kvmerge
