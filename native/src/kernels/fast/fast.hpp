// The fast kernels: loops the compiler turns into vectors, compiled once for each instruction set (see CMakeLists.txt), which names
// the namespace. `omp simd` allows the reductions to be reordered, and nothing else.
#pragma once

#include "../kernels.hpp"

#include <cmath>
#include <cstring>

#ifndef KVMERGE_ISA
#    error "compile with -DKVMERGE_ISA=<namespace>"
#endif

namespace kvmerge {
namespace KVMERGE_ISA {

#define KVMERGE_DECLARE(name, Args) void name(const Args &);
KVMERGE_KERNELS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

// Bytes of n elements of a cell type, and reading them: of Q8_0, n is a multiple of its block.
size_t bytes_of(int32_t type, size_t n);
void to_float(int32_t type, const void * in, std::ptrdiff_t n, float * out);

static constexpr std::ptrdiff_t BLOCK = 512; // single-precision partial sums are added up in double

static inline float from_bits(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int32_t to_bits(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Vectors by name, for sums that have to stay in registers: of a reduction that is left to it, GCC 12 keeps the partial sums in memory.
#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

static inline Vector load(const float * x) {
    return *reinterpret_cast<const Vector *>(x);
}

static inline float added_up(Vector v) {
    float x[WIDTH];
    std::memcpy(x, &v, sizeof v);
    for (int width = WIDTH / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            x[j] += x[j + width];
        }
    }
    return x[0];
}

// exp(x) for x <= 88, error about 2 ulp; flushes to 0 below -87; NaN stays. Cephes expf polynomial.
static inline float exp_bounded(float x) {
    const float c = x >= -87.0f ? x : -87.0f;
    const float n = (c * 1.44269504089f + 12582912.0f) - 12582912.0f; // nearest integer
    float f = c - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    const float scaled = y * from_bits((int32_t(n) + 127) << 23);
    return x < -87.0f ? 0.0f : scaled + (x - x);
}

// p, p^1.5 or p^2.
template <int HALF_POWERS>
static inline float sharpened(float p) {
    return HALF_POWERS == 2 ? p : HALF_POWERS == 3 ? p * std::sqrt(p) : p * p;
}

// Adds up to four rows to the column sums: one load and store of a sum for four of them.
template <int ROWS, int HALF_POWERS = 2>
static inline void add_rows(const float * p, std::ptrdiff_t stride, int n, float * sum) {
#pragma omp simd
    for (int c = 0; c < n; c++) {
        float x = sharpened<HALF_POWERS>(p[c]);
        if (ROWS > 1) {
            x = (x + sharpened<HALF_POWERS>(p[stride + c])) +
                (sharpened<HALF_POWERS>(p[2 * stride + c]) + sharpened<HALF_POWERS>(p[3 * stride + c]));
        }
        sum[c] += x;
    }
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
