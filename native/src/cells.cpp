#include "cells.hpp"

#include "kernels/kernels.hpp"
#include "status.hpp"

#include <algorithm>
#include <cstring>

namespace kvmerge {

namespace {

// Address of the first element of a cell, and the step to the next, in elements.
struct Strided {
    char * base;
    std::ptrdiff_t step;
};

Strided locate(const CellTensor & t, int kv_head, int32_t cell, size_t element) {
    char * const data = static_cast<char *>(t.tensor->data);
    const std::ptrdiff_t first = std::ptrdiff_t(kv_head) * t.head_dim;
    if (t.transposed) {
        return {data + (first * t.n_cells + cell) * std::ptrdiff_t(element), t.n_cells};
    }
    return {data + std::ptrdiff_t(cell) * std::ptrdiff_t(t.tensor->nb[1]) + first * std::ptrdiff_t(element), 1};
}

template <class T>
void gather(const Strided & from, int n, T * to) {
    const T * source = reinterpret_cast<const T *>(from.base);
    for (int i = 0; i < n; i++) {
        to[i] = source[i * from.step];
    }
}

template <class T>
void scatter(const T * from, int n, const Strided & to) {
    T * target = reinterpret_cast<T *>(to.base);
    for (int i = 0; i < n; i++) {
        target[i * to.step] = from[i];
    }
}

} // namespace

void CellTensor::read(int kv_head, const int32_t * cells, int n, float * out) const {
    if (tensor->type == GGML_TYPE_F32) {
        for (int i = 0; i < n; i++) {
            gather(locate(*this, kv_head, cells[i], 4), head_dim, out + size_t(i) * head_dim);
        }
        return;
    }
    if (!transposed) {
        for (int i = 0; i < n; i++) {
            const char * cell = locate(*this, kv_head, cells[i], 2).base;
            kernels().half_to_float({reinterpret_cast<const uint16_t *>(cell), out + size_t(i) * head_dim, head_dim});
        }
        return;
    }
    // Along a dimension the cells of one head lie side by side: walk it that way, so that the loads share cache lines, a few
    // cells at a time, so that the stores do too.
    constexpr int TILE = 64;
    const uint16_t * const head = static_cast<const uint16_t *>(tensor->data) + std::ptrdiff_t(kv_head) * head_dim * n_cells;
    std::vector<uint16_t> half(size_t(TILE) * head_dim);
    for (int i0 = 0; i0 < n; i0 += TILE) {
        const int tile = std::min(TILE, n - i0);
        for (int j = 0; j < head_dim; j++) {
            const uint16_t * row = head + std::ptrdiff_t(j) * n_cells;
            uint16_t * to = half.data() + j;
            for (int i = 0; i < tile; i++) {
                to[std::ptrdiff_t(i) * head_dim] = row[cells[i0 + i]];
            }
        }
        kernels().half_to_float({half.data(), out + size_t(i0) * head_dim, std::ptrdiff_t(tile) * head_dim});
    }
}

void CellTensor::write(int kv_head, const int32_t * cells, int n, const float * in) const {
    if (tensor->type == GGML_TYPE_F32) {
        for (int i = 0; i < n; i++) {
            scatter(in + size_t(i) * head_dim, head_dim, locate(*this, kv_head, cells[i], 4));
        }
        return;
    }
    std::vector<uint16_t> half(size_t(n) * head_dim);
    kernels().float_to_half({in, half.data(), std::ptrdiff_t(n) * head_dim});
    for (int i = 0; i < n; i++) {
        scatter(half.data() + size_t(i) * head_dim, head_dim, locate(*this, kv_head, cells[i], 2));
    }
}

int64_t CellTensor::bytes() const {
    return tensor->nb[2] > 0 ? int64_t(tensor->nb[2]) * tensor->ne[2] : 0;
}

void check_supported(const CellTensor & c, const kvmerge_ggml & ggml, int layer, const char * which) {
    const ggml_tensor * t = c.tensor;
    if (t->type != GGML_TYPE_F16 && t->type != GGML_TYPE_F32) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells of ggml type %d are not handled; use f16 or f32 (-ctk, -ctv)",
                                                layer, which, int(t->type)));
    }
    if (t->ne[2] != 1 || t->ne[3] != 1) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells of %lld streams are not handled; use one sequence", layer,
                                                which, (long long)t->ne[2]));
    }
    if (!t->buffer || !ggml.buffer_is_host(t->buffer)) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: %s cells are not in host memory; run on the CPU (-ngl 0, or --device cpu)", layer, which));
    }
}

} // namespace kvmerge
