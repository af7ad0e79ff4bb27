// Half precision, and rows of logits.
#include "fast.hpp"

#include <algorithm>
#include <cmath>

namespace kvmerge {
namespace KVMERGE_ISA {

static inline uint16_t float_to_half_one(float x) {
    const uint32_t bits = uint32_t(to_bits(x));
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        return uint16_t(sign | 0x7e00);
    }
    if (rest >= 0x477ff000) { // 65520
        return uint16_t(sign | 0x7c00);
    }
    if (rest < 0x38800000) { // below 2^-14: adding .5 leaves the rounded subnormal in the low mantissa bits
        return uint16_t(sign | uint32_t(to_bits(from_bits(int32_t(rest)) + 0.5f) - 0x3f000000));
    }
    const uint32_t odd = (rest >> 13) & 1;
    return uint16_t(sign | ((rest + 0xfff + odd - (uint32_t(112) << 23)) >> 13));
}

void half_to_float(const HalfToFloatArgs & a) {
    to_floats(reinterpret_cast<const Half *>(a.in), a.n, a.out);
}

void float_to_half(const FloatToHalfArgs & args) {
    const FloatToHalfArgs a = args; // for all that the compiler knows, the descriptor could lie where the results go
    std::ptrdiff_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= a.n; i += 16) {
        _mm256_storeu_si256((__m256i *)(a.out + i), _mm512_cvtps_ph(_mm512_loadu_ps(a.in + i), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
#if defined(__F16C__)
    for (; i + 8 <= a.n; i += 8) {
        _mm_storeu_si128((__m128i *)(a.out + i), _mm256_cvtps_ph(_mm256_loadu_ps(a.in + i), _MM_FROUND_TO_NEAREST_INT));
    }
#elif defined(__ARM_NEON)
    for (; i + 4 <= a.n; i += 4) {
        vst1_u16(a.out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(a.in + i))));
    }
#endif
    for (; i < a.n; i++) {
        a.out[i] = float_to_half_one(a.in[i]);
    }
}

void log_sum_exp(const LogSumExpArgs & a) {
    float max = a.x[0];
#pragma omp simd reduction(max : max)
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        max = a.x[i] > max ? a.x[i] : max;
    }
    double sum = 0;
    for (std::ptrdiff_t i0 = 0; i0 < a.n; i0 += BLOCK) {
        const std::ptrdiff_t i1 = std::min(a.n, i0 + BLOCK);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (std::ptrdiff_t i = i0; i < i1; i++) {
            part += exp_bounded(a.x[i] - max);
        }
        sum += part;
    }
    *a.lse = max + std::log(sum);
    std::ptrdiff_t i = 0;
    while (i < a.n - 1 && a.x[i] != max) {
        i++;
    }
    *a.argmax = i;
}

void kl_row(const KlRowArgs & a) {
    // KL(P||Q) = sum e^b (b - x) / S - log S + lse, with b the stored log probability and S = sum e^b.
    double total = 0, cross = 0;
    const float lse = float(a.lse), low = a.base_min, scale = a.base_scale; // locals, or the loop is not made a vector one
    const uint16_t * const base = a.base;
    const float * const x = a.x;
    for (std::ptrdiff_t i0 = 0; i0 < a.n; i0 += BLOCK) {
        const std::ptrdiff_t i1 = std::min(a.n, i0 + BLOCK);
        float part_total = 0, part_cross = 0;
#pragma omp simd reduction(+ : part_total, part_cross)
        for (std::ptrdiff_t i = i0; i < i1; i++) {
            const float log_p = low + scale * float(base[i]);
            const float p = exp_bounded(log_p);
            part_total += p;
            part_cross += p * (log_p - (x[i] - lse));
        }
        total += part_total;
        cross += part_cross;
    }
    *a.kl = cross / total - std::log(total) + (a.lse - double(lse));
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
