// The fast kernels: loops that the compiler turns into vectors. They are compiled once for each instruction set (see
// CMakeLists.txt), into a namespace of its name. `omp simd` allows the compiler to reorder sums, and nothing else.
#pragma once

#include "../kernels.hpp"

#include <cmath>
#include <cstring>
#if defined(__F16C__)
#    include <immintrin.h>
#elif defined(__ARM_NEON)
#    include <arm_neon.h>
#endif

#ifndef KVMERGE_ISA
#    error "compile with -DKVMERGE_ISA=<namespace>"
#endif

namespace kvmerge {
namespace KVMERGE_ISA {

#define KVMERGE_DECLARE(name, Args) void name(const Args &);
KVMERGE_KERNELS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

// Reads n elements of a cell type. Of a quantised one, n is a multiple of QUANTS.
void to_float(int32_t type, const void * in, std::ptrdiff_t n, float * out);
void quants_to_float(int32_t type, const void * in, std::ptrdiff_t n, float * out);
// Writes the bytes that ggml's quantize_row_<type>_ref writes. Where those are undefined, at a NaN and beside an
// infinity, an element gets the code of zero, or of the least.
void float_to_quants(int32_t type, const float * in, std::ptrdiff_t n, void * out);
// Half precision, rounded to nearest even. Overflow gives infinity.
uint16_t one_to_half(float x);

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

// Explicit vectors, for sums that must stay in registers: where a reduction is left to GCC 12, it keeps the partial
// sums in memory.
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

static inline void store(float * x, Vector v) {
    *reinterpret_cast<Vector *>(x) = v;
}

static inline float added_up(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#else
    float x[WIDTH];
    std::memcpy(x, &v, sizeof v);
    for (int width = WIDTH / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            x[j] += x[j + width];
        }
    }
    return x[0];
#endif
}

// Elements of 16 bits.
struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

static inline float value_of(float x) {
    return x;
}

static inline float value_of(BFloat16 x) {
    return from_bits(int32_t(uint32_t(x.bits) << 16));
}

static inline float value_of(Half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
    const uint32_t rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) {
        return from_bits(int32_t(sign | 0x7f800000 | ((rest & 0x3ff) << 13)));
    }
    // 2^112 shifts the exponent bias, subnormals included.
    const float magnitude = from_bits(int32_t(rest << 13)) * from_bits(int32_t((127 + 112) << 23));
    return from_bits(int32_t(sign | uint32_t(to_bits(magnitude))));
}

static inline Vector load(const BFloat16 * x) {
    typedef uint16_t Bits __attribute__((vector_size(WIDTH * sizeof(uint16_t)), aligned(2), may_alias));
    typedef uint32_t Wide __attribute__((vector_size(WIDTH * sizeof(uint32_t))));
    return Vector(__builtin_convertvector(*reinterpret_cast<const Bits *>(x), Wide) << 16);
}

static inline Vector load(const Half * x) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x)));
#elif defined(__ARM_NEON)
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t *>(x))));
#else
    Vector v;
    for (int i = 0; i < WIDTH; i++) {
        v[i] = value_of(x[i]);
    }
    return v;
#endif
}

template <class T>
static inline void four_to_floats(const T (&in)[4], float * out) {
    for (int i = 0; i < 4; i++) {
        out[i] = value_of(in[i]);
    }
}

#if defined(__F16C__)
static inline void four_to_floats(const Half (&in)[4], float * out) {
    const uint64_t bits =
        uint64_t(in[0].bits) | uint64_t(in[1].bits) << 16 | uint64_t(in[2].bits) << 32 | uint64_t(in[3].bits) << 48;
    // From a register: a load of the four elements from memory would wait for four stores.
    _mm_storeu_ps(out, _mm_cvtph_ps(_mm_cvtsi64_si128(int64_t(bits))));
}
#elif defined(__ARM_NEON)
static inline void four_to_floats(const Half (&in)[4], float * out) {
    vst1q_f32(out, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&in[0].bits))));
}
#endif

// Converts elements that lie side by side.
template <class T>
static inline void to_floats(const T * in, std::ptrdiff_t n, float * out) {
    std::ptrdiff_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        store(out + i, load(in + i));
    }
    for (; i < n; i++) {
        out[i] = value_of(in[i]);
    }
}

// Calls body with data as a pointer to elements of its type. Not for quantised types, whose elements come in blocks.
template <class Body>
static inline void with_elements(int32_t type, const void * data, Body && body) {
    switch (type) {
    case CELL_F32:
        body(static_cast<const float *>(data));
        return;
    case CELL_F16:
        body(static_cast<const Half *>(data));
        return;
    default:
        body(static_cast<const BFloat16 *>(data));
    }
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

// Natural logarithm of a positive normal number, to seven digits. Other numbers give anything. Cephes logf polynomial.
static inline float log_normal(float x) {
    constexpr int32_t ROOT_OF_HALF = 0x3f3504f3; // the mantissa is from there to the root of 2
    const int32_t bits = to_bits(x) - ROOT_OF_HALF;
    const float exponent = float(bits >> 23);
    const float f = from_bits((bits & 0x7fffff) + ROOT_OF_HALF) - 1.0f;
    const float z = f * f;
    float y = 7.0376836292e-2f;
    y = y * f - 1.1514610310e-1f;
    y = y * f + 1.1676998740e-1f;
    y = y * f - 1.2420140846e-1f;
    y = y * f + 1.4249322787e-1f;
    y = y * f - 1.6668057665e-1f;
    y = y * f + 2.0000714765e-1f;
    y = y * f - 2.4999993993e-1f;
    y = y * f + 3.3333331174e-1f;
    return f + (f * z * y - exponent * 2.12194440e-4f - 0.5f * z) + exponent * 0.693359375f;
}

// p, p^1.5 or p^2.
template <int HALF_POWERS>
static inline float sharpened(float p) {
    return HALF_POWERS == 2 ? p : HALF_POWERS == 3 ? p * std::sqrt(p) : p * p;
}

// Adds one row or four to the column sums. With four, each sum is loaded and stored once for all of them.
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
