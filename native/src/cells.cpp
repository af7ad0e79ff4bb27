#include "cells.hpp"

#include "kernels/kernels.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvmerge {

namespace {

// ggml's block_q8_0: 32 signed bytes and their scale in half precision.
constexpr int Q8_0_BLOCK = 32;
struct BlockQ8_0 {
    uint16_t scale;
    int8_t x[Q8_0_BLOCK];
};
static_assert(sizeof(BlockQ8_0) == 34, "as ggml lays it out");

float half_to_float(uint16_t half) {
    float x;
    kernels().half_to_float({&half, &x, 1});
    return x;
}

uint16_t float_to_half(float x) {
    uint16_t half;
    kernels().float_to_half({&x, &half, 1});
    return half;
}

void q8_0_to_float(const BlockQ8_0 * in, int n, float * out) {
    for (int b = 0; b < n / Q8_0_BLOCK; b++) {
        const float scale = half_to_float(in[b].scale);
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            out[b * Q8_0_BLOCK + i] = scale * in[b].x[i];
        }
    }
}

// As ggml's quantize_row_q8_0_ref.
void float_to_q8_0(const float * in, int n, BlockQ8_0 * out) {
    for (int b = 0; b < n / Q8_0_BLOCK; b++) {
        const float * x = in + b * Q8_0_BLOCK;
        float largest = 0;
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            largest = std::max(largest, std::fabs(x[i]));
        }
        const float scale = largest / 127;
        const float inverse = scale != 0 ? 1 / scale : 0;
        out[b].scale = float_to_half(scale);
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            out[b].x[i] = int8_t(std::round(x[i] * inverse));
        }
    }
}

void bf16_to_float(const uint16_t * in, std::ptrdiff_t n, float * out) {
    for (std::ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = uint32_t(in[i]) << 16;
        std::memcpy(out + i, &bits, sizeof bits);
    }
}

// Round to nearest even; NaN stays NaN.
void float_to_bf16(const float * in, std::ptrdiff_t n, uint16_t * out) {
    for (std::ptrdiff_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, in + i, sizeof bits);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        out[i] = uint16_t(nan ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

void to_float(ggml_type type, const void * in, std::ptrdiff_t n, float * out) {
    if (n == 0) {
        return; // an empty vector's memory may be null
    }
    switch (type) {
    case GGML_TYPE_F32:
        std::memcpy(out, in, size_t(n) * sizeof(float));
        return;
    case GGML_TYPE_F16:
        kernels().half_to_float({static_cast<const uint16_t *>(in), out, n});
        return;
    case GGML_TYPE_BF16:
        bf16_to_float(static_cast<const uint16_t *>(in), n, out);
        return;
    default:
        q8_0_to_float(static_cast<const BlockQ8_0 *>(in), int(n), out);
    }
}

void from_float(ggml_type type, const float * in, std::ptrdiff_t n, void * out) {
    if (n == 0) {
        return;
    }
    switch (type) {
    case GGML_TYPE_F32:
        std::memcpy(out, in, size_t(n) * sizeof(float));
        return;
    case GGML_TYPE_F16:
        kernels().float_to_half({in, static_cast<uint16_t *>(out), n});
        return;
    case GGML_TYPE_BF16:
        float_to_bf16(in, n, static_cast<uint16_t *>(out));
        return;
    default:
        float_to_q8_0(in, int(n), static_cast<BlockQ8_0 *>(out));
    }
}

// Bytes of n elements: of Q8_0, n is a multiple of its block.
size_t bytes_of(ggml_type type, size_t n) {
    return type == GGML_TYPE_F32 ? 4 * n : type == GGML_TYPE_Q8_0 ? n / Q8_0_BLOCK * sizeof(BlockQ8_0) : 2 * n;
}

char * row_of(const CellTensor & t, int kv_head, int32_t cell) {
    return static_cast<char *>(t.tensor->data) + size_t(cell) * t.tensor->nb[1] +
           bytes_of(t.tensor->type, size_t(kv_head) * t.head_dim);
}

// Transposed, the cells of a head lie side by side along a dimension: walk them that way, so that loads share cache lines, a few cells at
// a time, so that stores do too. T is an element's bits.
constexpr int TILE = 64;

template <class T>
void read_transposed(const CellTensor & t, int kv_head, const int32_t * cells, int n, float * out) {
    const T * const head = static_cast<const T *>(t.tensor->data) + std::ptrdiff_t(kv_head) * t.head_dim * t.n_cells;
    std::vector<T> tile(size_t(TILE) * t.head_dim);
    for (int i0 = 0; i0 < n; i0 += TILE) {
        const int count = std::min(TILE, n - i0);
        for (int j = 0; j < t.head_dim; j++) {
            const T * row = head + std::ptrdiff_t(j) * t.n_cells;
            T * to = tile.data() + j;
            for (int i = 0; i < count; i++) {
                to[std::ptrdiff_t(i) * t.head_dim] = row[cells[i0 + i]];
            }
        }
        to_float(t.tensor->type, tile.data(), std::ptrdiff_t(count) * t.head_dim, out + size_t(i0) * t.head_dim);
    }
}

template <class T>
void write_transposed(const CellTensor & t, int kv_head, const int32_t * cells, int n, const float * in) {
    T * const head = static_cast<T *>(t.tensor->data) + std::ptrdiff_t(kv_head) * t.head_dim * t.n_cells;
    std::vector<T> values(size_t(n) * t.head_dim);
    from_float(t.tensor->type, in, std::ptrdiff_t(n) * t.head_dim, values.data());
    for (int j = 0; j < t.head_dim; j++) {
        T * row = head + std::ptrdiff_t(j) * t.n_cells;
        for (int i = 0; i < n; i++) {
            row[cells[i]] = values[size_t(i) * t.head_dim + j];
        }
    }
}

} // namespace

void CellTensor::read(int kv_head, const int32_t * cells, int n, float * out) const {
    if (transposed) {
        tensor->type == GGML_TYPE_F32 ? read_transposed<uint32_t>(*this, kv_head, cells, n, out)
                                      : read_transposed<uint16_t>(*this, kv_head, cells, n, out);
        return;
    }
    for (int i = 0; i < n; i++) {
        to_float(tensor->type, row_of(*this, kv_head, cells[i]), head_dim, out + size_t(i) * head_dim);
    }
}

void CellTensor::write(int kv_head, const int32_t * cells, int n, const float * in) const {
    if (transposed) {
        tensor->type == GGML_TYPE_F32 ? write_transposed<uint32_t>(*this, kv_head, cells, n, in)
                                      : write_transposed<uint16_t>(*this, kv_head, cells, n, in);
        return;
    }
    for (int i = 0; i < n; i++) {
        from_float(tensor->type, in + size_t(i) * head_dim, head_dim, row_of(*this, kv_head, cells[i]));
    }
}

int64_t CellTensor::bytes() const {
    return int64_t(tensor->nb[2]) * tensor->ne[2];
}

const char * CellTensor::type_name() const {
    switch (tensor->type) {
    case GGML_TYPE_F32:
        return "f32";
    case GGML_TYPE_F16:
        return "f16";
    case GGML_TYPE_BF16:
        return "bf16";
    case GGML_TYPE_Q8_0:
        return "q8_0";
    default:
        return nullptr;
    }
}

void check_supported(const CellTensor & c, const kvmerge_ggml & ggml, int layer, const char * which) {
    const ggml_tensor * t = c.tensor;
    const bool block_fits = t->type != GGML_TYPE_Q8_0 || (!c.transposed && c.head_dim % Q8_0_BLOCK == 0);
    if (!c.type_name() || !block_fits) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: %s cells of ggml type %d are not handled%s; use f16, f32, bf16 or q8_0 (-ctk, -ctv)", layer,
                         which, int(t->type), block_fits ? "" : " at this head size"));
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
