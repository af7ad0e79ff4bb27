// Products on tensor cores as mma.h has them, on the shim's fibers. Which lane holds what is not what a GPU does, which
// nobody may rely on.
#pragma once

#include "cuda_fp16.h"
#include "cuda_runtime.h"

#include <array>

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };

// A lane holds eight elements that follow each other in a matrix of 16 by 16.
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    T x[8];
};

inline int element(int i) {
    return int(shim::thread_index.x % 32) * 8 + i;
}

template <class T>
void fill_fragment(fragment<accumulator, 16, 16, 16, T> & f, T value) {
    std::fill(f.x, f.x + 8, value);
}

template <class T>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, row_major> & f, const T * from, unsigned stride) {
    for (int i = 0; i < 8; i++) {
        f.x[i] = from[element(i) / 16 * stride + element(i) % 16];
    }
}

template <class T>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, col_major> & f, const T * from, unsigned stride) {
    for (int i = 0; i < 8; i++) {
        f.x[i] = from[element(i) % 16 * stride + element(i) / 16];
    }
}

// All lanes' elements of a matrix.
template <class Fragment>
std::array<float, 256> whole(const Fragment & f) {
    std::array<float, 256> all;
    for (int half = 0; half < 2; half++) {
        uint64_t four = 0;
        std::memcpy(&four, f.x + 4 * half, sizeof four);
        const uint64_t * const given = shim::exchange(four);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                all[size_t(lane * 8 + 4 * half + i)] = __half2float({uint16_t(given[lane] >> (16 * i))});
            }
        }
    }
    return all;
}

inline void mma_sync(fragment<accumulator, 16, 16, 16, float> & d,
                     const fragment<matrix_a, 16, 16, 16, __half, row_major> & a,
                     const fragment<matrix_b, 16, 16, 16, __half, col_major> & b,
                     const fragment<accumulator, 16, 16, 16, float> & c) {
    const auto left = whole(a), right = whole(b);
    for (int i = 0; i < 8; i++) {
        float sum = c.x[i];
        for (int k = 0; k < 16; k++) {
            sum += left[size_t(element(i) / 16 * 16 + k)] * right[size_t(k * 16 + element(i) % 16)];
        }
        d.x[i] = sum;
    }
}

inline void store_matrix_sync(float * to, const fragment<accumulator, 16, 16, 16, float> & f, unsigned stride,
                              layout_t) {
    for (int i = 0; i < 8; i++) {
        to[element(i) / 16 * stride + element(i) % 16] = f.x[i];
    }
}

} // namespace wmma
} // namespace nvcuda
